"""The KL divergence of formats."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.cost_model import CostModel

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray


@dataclass(frozen=True)
class KLModel(CostModel):
    """Predicted KL divergence of ops in formats, nats per token: all that a program knows of it.

    The cost of an op in a format is its KL divergence from the model in the base format, to second order in
    the rounding error (see `measure_sensitivity`); costs add up over ops whose errors are independent.

    The errors of ops that read one tensor are equal. Where such ops cost more together than alone, each has a
    share of the difference. A program counts it whole, which is never too little: it is exact where all of
    these ops are lowered, or none. The prediction of a plan counts the part of an op's share that goes with
    the part of the other ones that are lowered, too.
    """

    def row_costs(self, format_name: str) -> FloatArray:
        """Predict the cost of each op in a format, row by row, beside all that read the same tensors.

        Raises:
            InputError: the rounding error of this format was not measured.
        """
        return super().row_costs(format_name) + self._shared(format_name)

    def plan_row_costs(self, format_name: str, lowered: Collection[str]) -> FloatArray:
        """Predict the cost of these ops together, all in one format, row by row, shape (rows,).

        An op's share of what equal errors add counts by (k - 1) / (n - 1), where k of the n ops that read the
        same tensors are lowered.

        Raises:
            InputError: the rounding error of this format was not measured.
        """
        chosen = np.array([op in lowered for op in self.ops], dtype=bool)
        costs = self.row_costs(format_name)[:, chosen].sum(axis=1)
        missing = (1.0 - self._beside(chosen))[chosen]
        together: FloatArray = costs - (self._shared(format_name)[:, chosen] * missing).sum(axis=1)
        return together

    def _shared(self, format_name: str) -> FloatArray:
        """Collect the shares, shape (rows, ops); 0 where ops cost less together, or nothing was measured."""
        shared = self.sensitivity.shared.get(format_name)
        if shared is None or self.noise != "measured":
            return np.zeros_like(self.sensitivity.input)
        positive: FloatArray = np.where(shared.mean(axis=0) > 0, shared, 0.0)
        return positive / self.sensitivity.tokens_per_row

    def _beside(self, chosen: np.ndarray) -> FloatArray:
        """Compute for each op the part of the others with its number in `reads` that are chosen, too."""
        reads = self.sensitivity.reads
        if reads is None:
            return np.ones(len(chosen))
        sizes = np.bincount(reads[reads >= 0], minlength=1)
        counts = np.bincount(reads[chosen & (reads >= 0)], minlength=len(sizes))
        beside = (counts[reads] - 1) / np.maximum(sizes[reads] - 1, 1)
        return np.where(reads >= 0, beside, 1.0)
