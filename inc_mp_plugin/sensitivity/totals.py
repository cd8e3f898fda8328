"""What is summed up while a loss is differentiated, for every sample and op."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor


class MixedSamplesError(Exception):
    """A tensor has a row that belongs to no single sample; never reaches the user."""


@dataclass(frozen=True, slots=True)
class Totals:
    """||z * dg/dz||^2 of every op and sample.

    `input` and `weight` have shape (samples, ops), in float64. `rounding[format]` has the same shape, and
    holds ||q * dg/dz||^2 of inputs and weight together, with the true rounding error q. `second` holds the
    parts that the second inputs of bgemms contribute: to `input` under the key "input", to `rounding` under
    each format. `shared[format]`, shape (samples, ops), is what an op adds to its own part where all
    ops that read the same tensors are rounded; `reads`, shape (ops,), numbers these sets of ops, -1 for an op
    that is in none. An op that runs beside some ops and then beside others is in one set with all of them.
    """

    input: Tensor
    weight: Tensor
    rounding: dict[str, Tensor]
    second: dict[str, Tensor]
    shared: dict[str, Tensor]
    reads: Tensor

    @staticmethod
    def zeros(samples: int, ops: int, *, formats: Collection[str], device: torch.device) -> Totals:
        """Make totals of nothing.

        Args:
            samples: number of samples.
            ops: number of ops.
            formats: in which rounding errors are measured.
            device: of the tensors.
        """
        nothing = torch.zeros(samples, ops, dtype=torch.float64, device=device)
        return Totals(
            nothing,
            torch.zeros_like(nothing),
            {format_name: torch.zeros_like(nothing) for format_name in formats},
            {key: torch.zeros_like(nothing) for key in ("input", *formats)},
            {format_name: torch.zeros_like(nothing) for format_name in formats},
            torch.full((ops,), -1, device=device),
        )

    def restarted(self, samples: int) -> Totals:
        """Return totals of nothing, for as many samples."""
        ops, formats = self.input.shape[1], tuple(self.rounding)
        return Totals.zeros(samples, ops, formats=formats, device=self.input.device)

    def read_together(self, columns: Tensor, number: int) -> None:
        """Give ops that read the same tensor one number, and all that any of them has read others with.

        Args:
            columns: of these ops.
            number: of the set, from 0.
        """
        numbers = self.reads[columns]
        joined = torch.isin(self.reads, numbers[numbers >= 0])
        joined[columns] = True
        self.reads[joined] = number

    @property
    def of_inputs(self) -> dict[str, Tensor]:
        """The totals that inputs count in: `input` under the key "input", `rounding` by format."""
        return {"input": self.input, **self.rounding}
