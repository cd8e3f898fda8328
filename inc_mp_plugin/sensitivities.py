"""Losses and sensitivities of a model's ops, and what they say a format costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.formats import alpha

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


class Drift(NamedTuple):
    """Change of the mean loss per loss MSE, in 1 / loss, and its standard error."""

    value: float
    stderr: float


NO_DRIFT = Drift(0.0, 0.0)


@dataclass(frozen=True)
class Sensitivity:
    """Loss and sensitivities, sample by sample (eq. 21), and how they price a format.

    `loss` has shape (samples,); `input` and `weight` have shape (samples, ops) and hold
    ||z * dg/dz||^2 of an op's inputs and of its weight. `rounding` holds, for formats whose rounding
    error q was measured, ||q * dg/dz||^2 of inputs and weight together, shape (samples, ops).
    `noise` says which model of the rounding noise prices a format: one of `formats.NOISES`.
    `measured_drift` is how far the mean loss moved, per d, when everything was rounded.
    """

    ops: tuple[str, ...]
    loss: FloatArray
    input: FloatArray
    weight: FloatArray
    rounding: Mapping[str, FloatArray] = field(default_factory=dict)
    noise: str = "uniform"
    measured_drift: Drift = NO_DRIFT

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.loss)

    @property
    def loss_ms(self) -> float:
        """Mean square of the loss, E[g^2]."""
        return float((self.loss**2).mean())

    @cached_property
    def total(self) -> dict[str, float]:
        """Sensitivity s of each op: the mean over samples, inputs and weight together (eq. 23)."""
        means = (self.input + self.weight).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def sample_loss_mse(self, format: str) -> FloatArray:
        """Squared loss change of each sample when an op alone runs in a format, shape (samples, ops).

        alpha_format ||z * dg/dz||^2 (eq. 22), or ||q * dg/dz||^2 with the measured rounding error q.

        Raises:
            InputError: the rounding error of this format was not measured.
        """
        if self.noise != "measured":
            return alpha(format, self.noise) * (self.input + self.weight)
        if format not in self.rounding:
            message = f"the noise of {format} was not measured; `inc-mp tune` with noise=measured does it"
            raise InputError(message)
        return self.rounding[format]

    def loss_mse(self, format: str) -> dict[str, float]:
        """Predicted loss MSE d of each op alone in a format: the mean over samples (eq. 24)."""
        means = self.sample_loss_mse(format).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def with_drift(self, loss_mse: float) -> float:
        """Loss MSE of ops whose d add up to this: d + (drift d)^2; d itself if no rounding was measured.

        Rounding changes a loss by a first-order part of mean 0 and variance d, and by a second-order
        part, q^T H q / 2, which is positive at a minimum of the loss and grows like d.
        """
        return loss_mse + (self.drift.value * loss_mse) ** 2

    def without_drift(self, loss_mse: float) -> float:
        """Inverse of `with_drift`, a hair lower: what the d of all ops may add up to for this loss MSE."""
        if not self.drift.value:
            return loss_mse
        root = math.sqrt(1.0 + 4.0 * self.drift.value**2 * loss_mse)
        return (1.0 - 1e-12) * 2.0 * loss_mse / (1.0 + root)

    @property
    def drift(self) -> Drift:
        """The measured drift; none where the noise is only modelled."""
        return self.measured_drift if self.noise == "measured" else NO_DRIFT

    def of(self, names: Collection[str]) -> Sensitivity:
        """The same, of these ops only; the others then stay in their base format."""
        kept = [index for index, name in enumerate(self.ops) if name in set(names)]
        return replace(
            self,
            ops=tuple(self.ops[index] for index in kept),
            input=self.input[:, kept],
            weight=self.weight[:, kept],
            rounding={format: rows[:, kept] for format, rows in self.rounding.items()},
        )

    def take(self, rows: NDArray[np.int64]) -> Sensitivity:
        """The same, of these samples only; one may be taken several times."""
        return replace(
            self,
            loss=self.loss[rows],
            input=self.input[rows],
            weight=self.weight[rows],
            rounding={format: one[rows] for format, one in self.rounding.items()},
        )
