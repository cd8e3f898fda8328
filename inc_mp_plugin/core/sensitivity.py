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

    `loss` has shape (samples,), in nats for a language model. `input` and `weight` have shape (samples, ops)
    and hold ||z * dg/dz||^2 of an op's inputs and of its weight, in the unit of the squared loss. `rounding`
    holds ||q * dg/dz||^2 of inputs and weight together, shape (samples, ops), by format: for the formats
    whose rounding error q was measured. `measured_drift` is the change of the mean loss, per d, with
    everything rounded.

    `second` holds the part of a bgemm's second input (keys, values), shape (samples, ops): the part of
    `input` under the key "input", and the part of `rounding` under each format.

    `maxabs` holds largest magnitudes over all samples, shape (ops,). Under "input" there is the maxabs of an
    op's input (of two inputs, the smaller maxabs). Under "weight" there is the maxabs of its weight, and
    under "channel" the smallest maxabs of the weight's output channels; both are infinite without a weight.
    Without `maxabs`, every op counts as one that INC has scales for.
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
        """Mean square of the loss, E[g^2], in the unit of the squared loss."""
        return float((self.loss**2).mean())

    @cached_property
    def total(self) -> dict[str, float]:
        """Sensitivity s of each op: the mean over samples, inputs and weight together (eq. 23)."""
        means = (self.input + self.weight).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def of(self, names: Collection[str]) -> Sensitivity:
        """Return the sensitivities of these ops only; all other ops then stay in their base format."""
        names = set(names)
        columns = [index for index, name in enumerate(self.ops) if name in names]
        return replace(
            self,
            ops=tuple(self.ops[index] for index in columns),
            input=self.input[:, columns],
            weight=self.weight[:, columns],
            rounding={format_name: rows[:, columns] for format_name, rows in self.rounding.items()},
            second={key: rows[:, columns] for key, rows in self.second.items()},
            maxabs={part: largest[columns] for part, largest in self.maxabs.items()},
        )

    def take(self, rows: NDArray[np.int64]) -> Sensitivity:
        """Return the sensitivities of these samples only, by their indices; a sample may occur repeatedly."""
        return replace(
            self,
            loss=self.loss[rows],
            input=self.input[rows],
            weight=self.weight[rows],
            rounding={format_name: array[rows] for format_name, array in self.rounding.items()},
            second={key: array[rows] for key, array in self.second.items()},
        )
