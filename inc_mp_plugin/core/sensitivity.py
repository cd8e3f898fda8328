"""Losses and sensitivities of a model's ops, sample by sample: arrays, without a price."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

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
    """Loss and sensitivities, sample by sample (eq. 21); a `LossModel` prices formats with them.

    `loss` has shape (samples,); `input` and `weight` have shape (samples, ops) and hold
    ||z * dg/dz||^2 of an op's inputs and of its weight. `rounding` holds, for formats whose rounding
    error q was measured, ||q * dg/dz||^2 of inputs and weight together, shape (samples, ops).
    `measured_drift` is how far the mean loss moved, per d, when everything was rounded.

    `second` holds the part of a bgemm's second input (keys, values), of shape (samples, ops): that of
    `input` under the key "input", and that of `rounding` under each format.

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
    measured_drift: Drift = NO_DRIFT
    second: Mapping[str, FloatArray] = field(default_factory=dict)
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

    def of(self, names: Collection[str]) -> Sensitivity:
        """The same, of these ops only; the others then stay in their base format."""
        kept = [index for index, name in enumerate(self.ops) if name in set(names)]
        return replace(
            self,
            ops=tuple(self.ops[index] for index in kept),
            input=self.input[:, kept],
            weight=self.weight[:, kept],
            rounding={format_name: rows[:, kept] for format_name, rows in self.rounding.items()},
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
            rounding={format_name: one[rows] for format_name, one in self.rounding.items()},
            second={key: one[rows] for key, one in self.second.items()},
        )
