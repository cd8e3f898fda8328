"""Losses and sensitivities of a model's ops, and what they say a format costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


class Drift(NamedTuple):
    """Change of the mean loss per loss MSE, in 1 / loss, and its standard error."""

    value: float
    stderr: float


NO_DRIFT = Drift(0.0, 0.0)
CACHE_FORMAT = "fp8_e4m3"


@dataclass(frozen=True)
class Sensitivity:
    """Loss and sensitivities, sample by sample (eq. 21), and how they price a format.

    `loss` has shape (samples,); `input` and `weight` have shape (samples, ops) and hold
    ||z * dg/dz||^2 of an op's inputs and of its weight. `rounding` holds, for formats whose rounding
    error q was measured, ||q * dg/dz||^2 of inputs and weight together, shape (samples, ops).
    `noise` says which model of the rounding noise prices a format: one of `formats.NOISES`.
    `measured_drift` is how far the mean loss moved, per d, when everything was rounded.

    `second` holds the part of a bgemm's second input (keys, values), of shape (samples, ops): that of
    `input` under the key "input", and that of `rounding` under each format. `cached` are bgemms that read
    their second input from a KV cache in FP8: it is rounded whatever their own format, and is no part of
    what lowering them costs.

    `maxabs` holds the largest magnitude over all samples, of shape (ops,): under "input" that of an op's
    input (of two, the smaller one), under "weight" that of its weight, under "channel" the smallest of its
    weight's output channels; infinite without a weight. Without these, every op counts as one that INC has
    scales for.
    """

    ops: tuple[str, ...]
    loss: FloatArray
    input: FloatArray
    weight: FloatArray
    rounding: Mapping[str, FloatArray] = field(default_factory=dict)
    noise: str = "uniform"
    measured_drift: Drift = NO_DRIFT
    second: Mapping[str, FloatArray] = field(default_factory=dict)
    cached: frozenset[str] = frozenset()
    maxabs: Mapping[str, FloatArray] = field(default_factory=dict)

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
            whole: FloatArray = alpha(format, self.noise) * (self.input + self.weight)
        elif format not in self.rounding:
            message = f"the noise of {format} was not measured; `inc-mp tune` with noise=measured does it"
            raise InputError(message)
        else:
            whole = self.rounding[format]
        if not self.cached:
            return whole
        rest: FloatArray = whole - self._of_second(format)
        return rest

    @cached_property
    def cache_loss_mse(self) -> FloatArray:
        """Squared loss change of each sample by a KV cache in FP8, shape (samples,).

        That of the keys and values which the `cached` bgemms read; 0 without any.

        Raises:
            InputError: it was not measured.
        """
        if not self.cached:
            return self.loss * 0.0
        total: FloatArray = self._of_second(CACHE_FORMAT).sum(axis=1)
        return total

    def _of_second(self, format: str) -> FloatArray:
        """What the second inputs of the cached bgemms cost in a format, shape (samples, ops)."""
        key = format if self.noise == "measured" else "input"
        if key not in self.second:
            message = (
                f"what a KV cache in {format} costs was not measured; `inc-mp tune` in a new folder does it"
            )
            raise InputError(message)
        part = self.second[key] if key == format else alpha(format, self.noise) * self.second[key]
        chosen: FloatArray = part * [float(op in self.cached) for op in self.ops]
        return chosen

    def loss_mse(self, format: str) -> dict[str, float]:
        """Predicted loss MSE d of each op alone in a format: the mean over samples (eq. 24)."""
        means = self.sample_loss_mse(format).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def with_drift(self, loss_mse: float) -> float:
        """Loss MSE of ops whose d add up to this, and of the KV cache: d + (drift d)^2.

        Rounding changes a loss by a first-order part of mean 0 and variance d, and by a second-order
        part, q^T H q / 2, which is positive at a minimum of the loss and grows like d.
        """
        whole = loss_mse + float(self.cache_loss_mse.mean())
        return whole + (self.drift.value * whole) ** 2

    def without_drift(self, loss_mse: float) -> float:
        """Inverse of `with_drift`, a hair lower: what the d of all ops may add up to for this loss MSE."""
        root = math.sqrt(1.0 + 4.0 * self.drift.value**2 * loss_mse)
        whole, cache = 2.0 * loss_mse / (1.0 + root), float(self.cache_loss_mse.mean())
        while self.with_drift(whole - cache) > loss_mse:  # by rounding errors of the larger of both
            whole -= math.ulp(max(whole, cache))
        return whole - cache

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
            second={key: rows[:, kept] for key, rows in self.second.items()},
            maxabs={part: one[kept] for part, one in self.maxabs.items()},
        )

    def take(self, rows: NDArray[np.int64]) -> Sensitivity:
        """The same, of these samples only; one may be taken several times."""
        return replace(
            self,
            loss=self.loss[rows],
            input=self.input[rows],
            weight=self.weight[rows],
            rounding={format: one[rows] for format, one in self.rounding.items()},
            second={key: one[rows] for key, one in self.second.items()},
        )
