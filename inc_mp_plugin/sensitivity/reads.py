"""Inputs of ops: the gradient of each op's own branch, and the error of a tensor that several ops read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inc_mp_plugin.sensitivity.pieces import pieces
from inc_mp_plugin.sensitivity.repeats import repeats
from inc_mp_plugin.sensitivity.totals import Totals

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True)
class Reader:
    """An op that reads a tensor: its name, the index of the input, its column in the totals, its kind."""

    op: str
    index: int
    column: int
    kind: str

    @property
    def joins(self) -> bool:
        """True if the op's error is that of the other ops which read the same tensor."""
        return self.index == 0 and self.kind != "bgemm"


@dataclass(slots=True)
class Reads:
    """A tensor, the ops that read it one after the other, and the gradients of their branches so far."""

    value: Tensor
    version: int
    readers: list[Reader]
    gradients: dict[int, Tensor] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """True if all gradients have come."""
        return len(self.gradients) == len(self.readers)

    def taken(self) -> Iterator[tuple[Reader, Tensor]]:
        """Give the gradients, and forget them: another backward pass may follow."""
        gradients, self.gradients = self.gradients, {}
        return ((self.readers[place], gradient) for place, gradient in sorted(gradients.items()))


def add_inputs(
    totals: Totals,
    rows: Sequence[Sequence[Tensor]],
    readers: Sequence[Reader],
    *,
    errors: Errors | None,
    together: bool,
) -> None:
    """Add ||z * dg/dz||^2 of one tensor z and the branch of each op that reads it, sample by sample.

    Equal values have equal rounding errors. So the errors of rows t of a tensor that are equal are the same,
    and those of ops k that read one tensor. Their products q * g add up before they are squared: of one op,
    and of all of them together::

        || sum_t q * g_kt ||^2,    || sum_kt q * g_kt ||^2

    The second is not the sum of the first over ops: each op has a share of the difference, in proportion to
    its own square, in `totals.shared`.

    Args:
        totals: to add to.
        rows: of each sample, its part of the tensor, then of the branches' gradients.
        readers: as many as gradients.
        errors: rounding errors q in the formats of the totals.
        together: add up equal errors; else every element counts by itself, as it does by the noise of the
            paper, alpha z^2.
    """
    for sample, tensors in enumerate(rows):
        same = repeats(tensors[0]) if together and errors is not None and _repeats(readers[0]) else None
        parts = pieces(*tensors) if same is None else iter([tuple(tensors)])
        for value, *gradients in parts:
            for key, total in totals.of_inputs.items():
                equal = None if key == "input" else same
                products = [
                    _summed(_part(value, reader, key, errors).float() * gradient.float(), equal)
                    for reader, gradient in zip(readers, gradients, strict=True)
                ]
                norms = _squared_norms(products)
                for reader, norm in zip(readers, norms, strict=True):
                    total[sample, reader.column] += norm
                    if reader.kind == "bgemm" and reader.index == 1:
                        totals.second[key][sample, reader.column] += norm
                if together and key != "input" and len(readers) > 1:
                    _add_shared(totals, key, sample, readers, products=products, norms=norms)


def _add_shared(
    totals: Totals,
    key: str,
    sample: int,
    readers: Sequence[Reader],
    *,
    products: Sequence[Tensor],
    norms: Tensor,
) -> None:
    """Add each op's share of what equal errors add; the products are added up into the first."""
    whole = products[0]
    for product in products[1:]:
        whole += product
    shares = norms * (_squared_norms([whole]) / norms.sum().clamp(min=_TINY) - 1.0)
    for reader, share in zip(readers, shares, strict=True):
        totals.shared[key][sample, reader.column] += share
        totals.reads[reader.column] = readers[0].column


def _repeats(reader: Reader) -> bool:
    """Tell if rows of an input may repeat: not those of queries and of attention's weights."""
    return reader.joins or reader.index == 1


def _part(value: Tensor, reader: Reader, key: str, errors: Errors | None) -> Tensor:
    if errors is None or key == "input":
        return value
    return errors.of_input(reader.op, reader.index, value, key)


def _summed(product: Tensor, same: Tensor | None) -> Tensor:
    """Add up the rows that are equal; `same` is from `repeats`."""
    if same is None:
        return product
    rows = product.flatten(0, -2)
    return torch.zeros_like(rows).index_add_(0, same, rows)


def _squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).double().square()
