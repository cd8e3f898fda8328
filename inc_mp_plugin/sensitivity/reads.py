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

    Equal values have equal rounding errors. So the errors of ops that read one tensor are the same, and those
    of rows of a tensor that are equal. The products q * g of the ops k and such rows t add up before they are
    squared::

        || sum_kt q * g_kt ||^2

    Each op has a share of that, in proportion to its own sum of squares: so costs add up to what the ops
    cost together; of an op that is lowered alone, the share is an estimate.

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
                products = [
                    _part(value, reader, key, errors).float() * gradient.float()
                    for reader, gradient in zip(readers, gradients, strict=True)
                ]
                norms = _squared_norms(products)
                if together and key != "input" and (len(products) > 1 or same is not None):
                    norms *= _summed_norm(products, same) / norms.sum().clamp(min=_TINY)
                for reader, norm in zip(readers, norms, strict=True):
                    total[sample, reader.column] += norm
                    if reader.kind == "bgemm" and reader.index == 1:
                        totals.second[key][sample, reader.column] += norm


def _repeats(reader: Reader) -> bool:
    """Tell if rows of an input may repeat: not those of queries and of attention's weights."""
    return reader.joins or reader.index == 1


def _part(value: Tensor, reader: Reader, key: str, errors: Errors | None) -> Tensor:
    if errors is None or key == "input":
        return value
    return errors.of_input(reader.op, reader.index, value, key)


def _summed_norm(products: Sequence[Tensor], same: Tensor | None) -> Tensor:
    """Compute the squared norm of the sum of products, into the first; equal rows are added up, too."""
    total = products[0]
    for product in products[1:]:
        total += product
    if same is not None:
        total = total.flatten(0, -2)
        total = torch.zeros_like(total).index_add_(0, same, total)
    return _squared_norms([total])[0]


def _squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    return torch.stack([torch.linalg.vector_norm(tensor) for tensor in tensors]).double().square()
