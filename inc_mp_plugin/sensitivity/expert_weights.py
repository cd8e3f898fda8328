"""||a * dg/dW||^2 of the weights of experts, sample by sample.

An expert gets few rows of a sample, so that the gradient of its weight, as large as the weight, costs more
than the rows. Where the weight is large, products of pairs of rows take less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from inc_mp_plugin.sensitivity.expert_products import slices

_LARGE = 2**18  # elements of a weight from which on pairs are worth it, for a sample with
_FEW = 6  # rows at most

Factors = Callable[[int], Sequence[Tensor]]


class Rows(NamedTuple):
    """Rows of experts: their inputs, and the gradients of their outputs.

    `keys` holds the number of the expert x the number of samples + the sample, in ascending order.
    """

    keys: Tensor
    value: Tensor
    of_output: Tensor

    @staticmethod
    def of(runs: Sequence[Rows]) -> Rows:
        """Unite the rows of several runs."""
        if len(runs) == 1:
            return runs[0]
        keys, value, of_output = (torch.cat(parts) for parts in zip(*runs, strict=True))
        keys, order = keys.sort(stable=True)
        return Rows(keys, value[order], of_output[order])


def weight_norms(rows: Rows, samples: int, factors: Factors) -> tuple[Tensor, Tensor]:
    """Compute ||a * dg/dW||^2 for every expert that got rows, and every sample.

    Args:
        rows: of experts.
        samples: their number.
        factors: returns the tensors a, in FP32 and the shape of an expert's weight, by its number.

    Returns:
        The numbers of the experts, and the norms, shape (factors, experts, samples).
    """
    experts, places = torch.unique_consecutive(rows.keys // samples, return_inverse=True)
    cells = places * samples + rows.keys % samples
    lengths = torch.bincount(cells, minlength=len(experts) * samples)
    gradients = _Gradients(rows)
    few = _FEW if gradients.elements >= _LARGE else 0
    pairs = _Pairs.of(lengths.view(-1, samples), few) if few else None
    segments = list(slices(lengths.tolist()))
    norms = []
    for place, number in enumerate(experts.tolist()):
        given = factors(number)
        norm = given[0].new_zeros(len(given), samples)
        many = [
            (i, part)
            for i, part in enumerate(segments[place * samples : (place + 1) * samples])
            if _length(part) > few
        ]
        if many:
            products = [product for _, part in many for product in gradients.norms(part, given)]
            norm[:, [i for i, _ in many]] = torch.stack(products).view(len(many), -1).T
        if pairs is not None:
            pairs.add_norms(norm, rows, place, given)
        norms.append(norm)
    return experts, torch.stack(norms, dim=1)


def _length(part: slice) -> int:
    length: int = part.stop - part.start
    return length


class _Gradients:
    """Gradients of weights of one size, one after the other in memory that is used again."""

    def __init__(self, rows: Rows) -> None:
        """Take the rows that they follow from."""
        self._rows = rows
        self._memory = rows.value.new_empty(rows.of_output.shape[1], rows.value.shape[1])
        self.elements = self._memory.numel()

    def norms(self, part: slice, factors: Sequence[Tensor]) -> Iterator[Tensor]:
        """Compute ||a * dg/dW||^2 of the rows of one expert and one sample, for every factor a."""
        gradient = torch.mm(self._rows.of_output[part].T, self._rows.value[part], out=self._memory)
        in_place = len(factors) == 1 and gradient.dtype == torch.float32
        for factor in factors:
            product = torch.mul(gradient, factor, out=gradient if in_place else None).view(-1)
            yield torch.dot(product, product)


class _Pairs(NamedTuple):
    """All pairs of two rows of one expert and sample, where these have few rows, in the order of the experts.

    `sample` is theirs. `times` is 1 for a row with itself, else 2. `stops` tells where the pairs of each
    expert end.
    """

    first: Tensor
    second: Tensor
    sample: Tensor
    times: Tensor
    stops: list[int]

    @staticmethod
    def of(lengths: Tensor, few: int) -> _Pairs:
        """List the pairs of up to `few` rows, one cell of (experts, samples) behind the other."""
        parts, starts = [], lengths.flatten().cumsum(0) - lengths.flatten()
        for length in range(1, few + 1):
            cell = (lengths.flatten() == length).nonzero()
            left, right = torch.triu_indices(length, length, device=lengths.device)
            start, times = starts[cell], torch.where(left == right, 1.0, 2.0)
            columns = (start + left, start + right, cell.expand(-1, len(left)), times.expand(len(cell), -1))
            parts.append([column.flatten() for column in columns])
        first, second, cell, times = (torch.cat(column) for column in zip(*parts, strict=True))
        order = cell.argsort(stable=True)
        expert, sample = cell[order] // lengths.shape[1], cell[order] % lengths.shape[1]
        stops = torch.bincount(expert, minlength=len(lengths)).cumsum(0).tolist()
        return _Pairs(first[order], second[order], sample, times[order], stops)

    def add_norms(self, norms: Tensor, rows: Rows, expert: int, factors: Sequence[Tensor]) -> None:
        """Add what the pairs of one expert contribute to its norms, shape (factors, samples).

        With rows x_s, x_t and gradients d_s, d_t that is (d_s * d_t)^T a^2 (x_s * x_t).

        Args:
            norms: of the expert.
            rows: of all experts.
            expert: its place among them.
            factors: its factors a.
        """
        part = slice(self.stops[expert - 1] if expert else 0, self.stops[expert])
        if part.start == part.stop:
            return
        first, second = self.first[part], self.second[part]
        values = rows.value[first].float() * rows.value[second].float()
        gradients = rows.of_output[first].float() * rows.of_output[second].float()
        for norm, factor in zip(norms, factors, strict=True):
            products = torch.mm(values, factor.square().T).mul_(gradients).sum(dim=1)
            norm.index_add_(0, self.sample[part], products * self.times[part])
