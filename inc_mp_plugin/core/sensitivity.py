"""Losses and sensitivities of a model's ops, row by row: arrays, without a price."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from inc_mp_plugin.core.literals import Estimator, Yardstick

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]


class Drift(NamedTuple):
    """Change of the mean loss with everything rounded, and its standard error.

    Per nat of KL divergence, or, where KL was not measured, per loss MSE, in 1 / loss. Of a plan: in the
    unit of the loss.
    """

    value: float
    stderr: float


NO_DRIFT = Drift(0.0, 0.0)


@dataclass(frozen=True)
class Sensitivity:
    """Losses and sensitivities, row by row (eq. 21); a `LossModel` or a `KLModel` prices formats with them.

    A row is a sample, or a batch. `input` and `weight` have shape (rows, ops). For the yardstick "loss" they
    hold ||z * dg/dz||^2 of an op's inputs and of its weight, in the unit of the squared loss g. For "kl"
    they hold half of that, for g = -sum log p of labels drawn from the model: nats, summed over the tokens
    of a row. `rounding` holds the same with the rounding error q in the place of z, for inputs and weight
    together, by format: for the formats whose rounding error was measured. `measured_drift` is the change of
    the mean loss with everything rounded.

    `loss` has shape (rows,), in nats for a language model: g of each row. `tokens` counts the positions of
    each row, and `sizes` its samples, shape (rows,), 1 where they are not given. `draws` is the number of
    drawn labels per position, over which rows are averaged.

    `second` holds the part of a bgemm's second input (keys, values), shape (rows, ops): the part of
    `input` under the key "input", and the part of `rounding` under each format.

    `shared` holds, by format, what an op adds to its own part of `rounding` where all ops that read the same
    tensors are rounded, shape (rows, ops); equal numbers in `reads`, shape (ops,), tell such ops, -1 an op
    that reads alone. Both are only there where they were measured: of the KL divergence.

    `maxabs` holds largest magnitudes over all samples, shape (ops,). Under "input" there is the maxabs of an
    op's input (of two inputs, the smaller maxabs). Under "weight" there is the maxabs of its weight, and
    under "channel" the smallest maxabs of the weight's output channels; both are infinite without a weight.
    Without `maxabs`, every op counts as one that INC has scales for.

    `kl` holds the sensitivities of the KL divergence beside those of the loss, if both were measured.
    """

    ops: tuple[str, ...]
    loss: FloatArray
    input: FloatArray
    weight: FloatArray
    rounding: Mapping[str, FloatArray] = field(default_factory=dict)
    measured_drift: Drift = NO_DRIFT
    second: Mapping[str, FloatArray] = field(default_factory=dict)
    maxabs: Mapping[str, FloatArray] = field(default_factory=dict)
    yardstick: Yardstick = "loss"
    rows: Estimator = "sample"
    draws: int = 1
    tokens: FloatArray | None = None
    sizes: FloatArray | None = None
    kl: Sensitivity | None = None
    shared: Mapping[str, FloatArray] = field(default_factory=dict)
    reads: NDArray[np.int64] | None = None

    @property
    def samples(self) -> int:
        """Number of samples."""
        return len(self.loss) if self.sizes is None else int(self.sizes.sum())

    @property
    def tokens_per_row(self) -> float:
        """Mean number of positions of a row."""
        return 1.0 if self.tokens is None else float(self.tokens.mean())

    @property
    def loss_ms(self) -> float:
        """Mean square of the loss, E[g^2], in the unit of the squared loss."""
        return float((self.loss**2).mean())

    @cached_property
    def total(self) -> dict[str, float]:
        """Sensitivity s of each op: the mean over rows, inputs and weight together (eq. 23)."""
        means = (self.input + self.weight).mean(axis=0)
        return dict(zip(self.ops, means.tolist(), strict=True))

    def of(self, names: Collection[str]) -> Sensitivity:
        """Return the sensitivities of these ops only; all other ops then stay in their base format."""
        names = set(names)
        columns = [index for index, name in enumerate(self.ops) if name in names]
        return replace(
            self,
            ops=tuple(self.ops[index] for index in columns),
            maxabs={part: largest[columns] for part, largest in self.maxabs.items()},
            kl=None if self.kl is None else self.kl.of(names),
            reads=None if self.reads is None else self.reads[columns],
            **self._squares(lambda array: array[:, columns]),
        )

    def take(self, rows: NDArray[np.int64]) -> Sensitivity:
        """Return the sensitivities of these rows only, by their indices; a row may occur repeatedly.

        The KL divergence beside the loss keeps its own rows where these are batches.
        """
        kl = self.kl
        return replace(
            self,
            loss=self.loss[rows],
            tokens=None if self.tokens is None else self.tokens[rows],
            sizes=None if self.sizes is None else self.sizes[rows],
            kl=kl if kl is None or kl.rows == "batch" else kl.take(rows),
            **self._squares(lambda array: array[rows]),
        )

    def _squares(self, change: Callable[[FloatArray], FloatArray]) -> dict[str, Any]:
        """Apply a change to all arrays of shape (rows, ops)."""
        return {
            "input": change(self.input),
            "weight": change(self.weight),
            "rounding": {name: change(array) for name, array in self.rounding.items()},
            "second": {key: change(array) for key, array in self.second.items()},
            "shared": {name: change(array) for name, array in self.shared.items()},
        }
