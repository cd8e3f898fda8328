"""The price of a format: noise, drift and KV cache over sensitivities."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.literals import NoiseModel
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift, Sensitivity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from inc_mp_plugin.core.sensitivity import FloatArray

CACHE_FORMAT = "fp8_e4m3"


@dataclass(frozen=True)
class LossModel:
    """Predicted loss MSE of ops in formats: all that a program knows of the loss.

    Attributes:
        sensitivity: of the ops that may leave the base format.
        noise: the model of the rounding noise that prices a format: one of `formats.NOISES`.
        cached: bgemms that read their second input from a KV cache in FP8: it is rounded whatever their own
            format, and is no part of what lowering them costs.
    """

    sensitivity: Sensitivity
    noise: NoiseModel = "uniform"
    cached: frozenset[str] = frozenset()

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops that may leave the base format."""
        return self.sensitivity.ops

    @property
    def loss(self) -> FloatArray:
        """Loss of each sample in the base format, shape (samples,)."""
        return self.sensitivity.loss

    @property
    def loss_ms(self) -> float:
        """Mean square of the loss, E[g^2]."""
        return self.sensitivity.loss_ms

    def sample_loss_mse(self, format_name: str) -> FloatArray:
        """Predict each sample's squared loss change when an op alone runs in a format, shape (samples, ops).

        alpha_format ||z * dg/dz||^2 (eq. 22), or ||q * dg/dz||^2 with the measured rounding error q.

        Raises:
            InputError: the rounding error of this format was not measured.
        """
        if self.noise != "measured":
            whole: FloatArray = alpha(format_name, self.noise) * (
                self.sensitivity.input + self.sensitivity.weight
            )
        elif format_name not in self.sensitivity.rounding:
            message = (
                f"the noise of {format_name} was not measured; `inc-mp tune` with noise=measured does it"
            )
            raise InputError(message)
        else:
            whole = self.sensitivity.rounding[format_name]
        if not self.cached:
            return whole
        rest: FloatArray = whole - self._of_second(format_name)
        return rest

    @cached_property
    def cache_loss_mse(self) -> FloatArray:
        """Squared loss change of each sample by a KV cache in FP8, shape (samples,).

        That of the keys and values which the `cached` bgemms read; 0 without any.

        Raises:
            InputError: it was not measured.
        """
        if not self.cached:
            return self.sensitivity.loss * 0.0
        total: FloatArray = self._of_second(CACHE_FORMAT).sum(axis=1)
        return total

    def _of_second(self, format_name: str) -> FloatArray:
        """Price the second inputs of the cached bgemms in a format, shape (samples, ops)."""
        key = format_name if self.noise == "measured" else "input"
        if key not in self.sensitivity.second:
            message = (
                f"what a KV cache in {format_name} costs was not measured; "
                "`inc-mp tune` in a new folder does it"
            )
            raise InputError(message)
        factor = 1.0 if key == format_name else alpha(format_name, self.noise)
        part = factor * self.sensitivity.second[key]
        second: FloatArray = part * [float(op in self.cached) for op in self.ops]
        return second

    def loss_mse(self, format_name: str) -> dict[str, float]:
        """Predict the loss MSE d of each op alone in a format: the mean over samples (eq. 24)."""
        means = self.sample_loss_mse(format_name).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def with_drift(self, loss_mse: float) -> float:
        """Predict the loss MSE of ops whose d add up to this, and of the KV cache: d + (drift d)^2.

        Rounding changes a loss by a first-order part of mean 0 and variance d, and by a second-order
        part, q^T H q / 2, which is positive at a minimum of the loss and grows like d.
        """
        whole = loss_mse + float(self.cache_loss_mse.mean())
        return whole + (self.drift.value * whole) ** 2

    def without_drift(self, loss_mse: float) -> float:
        """Invert `with_drift`, a hair lower: what the d of all ops may add up to for this loss MSE."""
        root = math.sqrt(1.0 + 4.0 * self.drift.value**2 * loss_mse)
        whole, cache = 2.0 * loss_mse / (1.0 + root), float(self.cache_loss_mse.mean())
        while self.with_drift(whole - cache) > loss_mse:  # by rounding errors of the larger of both
            whole -= math.ulp(max(whole, cache))
        return whole - cache

    @property
    def drift(self) -> Drift:
        """The measured drift; none where the noise is only modelled."""
        return self.sensitivity.measured_drift if self.noise == "measured" else NO_DRIFT

    def of(self, names: Collection[str]) -> LossModel:
        """Keep these ops only; the others then stay in their base format."""
        return replace(self, sensitivity=self.sensitivity.of(names))

    def take(self, rows: NDArray[np.int64]) -> LossModel:
        """Keep these samples only; one may be taken several times."""
        return replace(self, sensitivity=self.sensitivity.take(rows))


def loss_model(losses: Sensitivity | LossModel) -> LossModel:
    """Return a loss model; sensitivities are priced by the paper's noise (eq. 16 to 18)."""
    return LossModel(losses) if isinstance(losses, Sensitivity) else losses
