"""Inputs of ops: the gradient of each op's own branch, and the error of a tensor that several ops read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inc_mp_plugin.sensitivity.pieces import norm, pieces
from inc_mp_plugin.sensitivity.repeats import repeats
from inc_mp_plugin.sensitivity.totals import Totals

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors

TINY = torch.finfo(torch.float64).tiny


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
    columns = torch.tensor([reader.column for reader in readers], device=totals.input.device)
    for sample, tensors in enumerate(rows):
        same = repeats(tensors[0]) if together and errors is not None and _repeats(readers[0]) else None
        norms = _Norms(readers, errors, same, joint=together and len(readers) > 1)
        for value, *gradients in pieces(*tensors) if same is None else [tuple(tensors)]:
            for key in totals.of_inputs:
                norms.add(key, value, gradients)
        for key, total in totals.of_inputs.items():
            alone, whole = norms.squares(key)
            total[sample].index_add_(0, columns, alone)
            if readers[0].kind == "bgemm" and readers[0].index == 1:
                totals.second[key][sample].index_add_(0, columns, alone)
            if whole is not None:
                more = whole / alone.sum().clamp(min=TINY) - 1.0
                totals.shared[key][sample].index_add_(0, columns, alone * more)
                totals.read_together(columns, readers[0].column)


class _Norms:
    """Norms of products of one sample, piece by piece: of each reader alone, and of all readers as a whole.

    They are squared and summed at the end: a piece is small, so that every operation on it counts.
    """

    def __init__(
        self, readers: Sequence[Reader], errors: Errors | None, same: Tensor | None, *, joint: bool
    ) -> None:
        """Prepare; `same` is from `repeats`, `joint` says that products of readers add up, too."""
        self._readers, self._errors, self._same, self._joint = readers, errors, same, joint
        self._alone: defaultdict[str, list[Tensor]] = defaultdict(list)
        self._whole: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, key: str, value: Tensor, gradients: Sequence[Tensor]) -> None:
        """Add a piece.

        Args:
            key: of the totals: "input" for the noise, or a format for its errors.
            value: the piece of the tensor.
            gradients: the same piece of each reader's gradient.
        """
        same = None if key == "input" else self._same
        products = [
            _summed(self._factor(reader, value, key) * gradient.float(), same)
            for reader, gradient in zip(self._readers, gradients, strict=True)
        ]
        self._alone[key] += map(norm, products)
        if self._joint and key != "input":
            first, *others = products
            for product in others:
                first += product
            self._whole[key].append(norm(first))

    def squares(self, key: str) -> tuple[Tensor, Tensor | None]:
        """Sum the squares over the pieces: of each reader, and of all as a whole if they were added up."""
        pieces = len(self._alone[key]) // len(self._readers)
        alone = torch.stack(self._alone[key]).view(pieces, -1).double().square().sum(dim=0)
        whole = self._whole.get(key)
        return alone, torch.stack(whole).double().square().sum() if whole else None

    def _factor(self, reader: Reader, value: Tensor, key: str) -> Tensor:
        if self._errors is None or key == "input":
            return value.float()
        return self._errors.of_input(reader.op, reader.index, value, key).float()


def _repeats(reader: Reader) -> bool:
    """Tell if rows of an input may repeat: not those of queries and of attention's weights."""
    return reader.joins or reader.index == 1


def _summed(product: Tensor, same: Tensor | None) -> Tensor:
    """Add up the rows that are equal; `same` is from `repeats`."""
    if same is None:
        return product
    rows = product.flatten(0, -2)
    return torch.zeros_like(rows).index_add_(0, same, rows)
