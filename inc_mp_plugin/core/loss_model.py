"""The loss MSE of formats: variance of the loss, and the shift of its mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray


@dataclass(frozen=True)
class LossModel(CostModel):
    """Predicted loss MSE of ops in formats: all that a program knows of the loss.

    Rounding changes a loss by a first-order part of mean 0 and variance d, which is the cost of an op, and by
    a second-order part, q^T H q / 2, which is positive at a minimum of the loss: the shift. Both add up over
    ops, and the loss MSE of ops is sum d + (sum shift)^2.
    """

    @property
    def loss(self) -> FloatArray:
        """Loss of each sample in the base format, shape (samples,)."""
        return self.sensitivity.loss

    @property
    def loss_ms(self) -> float:
        """Mean square of the loss, E[g^2]."""
        return self.sensitivity.loss_ms

    @property
    def drift(self) -> Drift:
        """The measured drift; none where the noise is only modelled."""
        return self.sensitivity.measured_drift if self.noise == "measured" else NO_DRIFT

    @cached_property
    def _curvature(self) -> CostModel:
        """The costs that shifts are proportional to: of the KL divergence if there are any, else d."""
        kl = self.sensitivity.kl
        return self if kl is None else KLModel(kl, self.noise, self.cached)

    def shifts(self, format_name: str) -> dict[str, float]:
        """Predict how far each op alone in a format shifts the mean loss: |drift| times KL, or times d.

        All shifts have the sign of the drift, which a square does not see.
        H is close to the Fisher information of the model's own predictions, whose quadratic form is the KL
        divergence; the drift is the factor between both, measured with everything rounded.
        """
        if not self.drift.value:
            return dict.fromkeys(self.ops, 0.0)
        return {op: abs(self.drift.value) * cost for op, cost in self._curvature.costs(format_name).items()}

    @property
    def cache_shift(self) -> float:
        """Shift of the mean loss by a KV cache in FP8."""
        return abs(self.drift.value) * self._curvature.cache_cost if self.drift.value else 0.0

    def with_shift(self, cost: float, shift: float) -> float:
        """Predict the loss MSE of ops whose d and shifts add up to these, and of the KV cache."""
        return cost + self.cache_cost + (shift + self.cache_shift) ** 2
