"""The vocabulary of the method: what is passed from one stage to the next, all of it frozen."""

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


class Gemm(NamedTuple):
    """Shape of one matrix product: `batch` times (rows x inner) @ (inner x columns)."""

    batch: int
    rows: int
    inner: int
    columns: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return math.prod(self)


@dataclass(frozen=True, slots=True)
class Op:
    """One quantizable operation: a module that INC can swap for its FP8 counterpart.

    `kind` is "linear", "conv2d" (weight and input) or "bgemm" (batched matmul of two activations);
    `macs` counts multiply-accumulates per sample over all calls; `tied` tells that the weight tensor
    is also used elsewhere (a head tied to the embedding), so that a quantized copy comes on top.
    `gemms` holds the shape of every call, of the whole batch; `after` names the ops of the same group
    whose results it needs, with no other op in between.
    """

    name: str
    kind: str
    macs: int
    weight_elements: int
    calls: int
    tied: bool = False
    gemms: tuple[Gemm, ...] = ()
    after: tuple[str, ...] = ()


# ATen names of the kernels that multiply all experts of a layer at once.
FUSED_EXPERTS = frozenset({"_grouped_mm", "grouped_mm_fallback"})


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A matrix product or convolution seen in the graph that cannot be quantized, with the reason."""

    name: str
    kind: str
    reason: str

    @property
    def fused_experts(self) -> bool:
        """Whether these are experts in one fused kernel."""
        return self.kind in FUSED_EXPERTS


@dataclass(frozen=True)
class Graph:
    """What a forward pass consists of: ops in execution order and their groups.

    `groups` are the sequential sub-graphs of the paper's section 2.3.1, each a tuple of op names.
    `modules` maps every module name to its class name: INC selects by these two. `structures` holds a
    hash per group: where it is the same, ops, shapes and everything between the ops are the same.
    """

    ops: tuple[Op, ...]
    groups: tuple[tuple[str, ...], ...]
    unsupported: tuple[Unsupported, ...]
    modules: Mapping[str, str]
    structures: tuple[str, ...] = ()

    @cached_property
    def by_name(self) -> dict[str, Op]:
        """Ops by their names."""
        return {op.name: op for op in self.ops}


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


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One format per op, what that is predicted to cost and to gain, and how it was found.

    `unit` and `source` are those of the gains; `noise` is the model that priced losses. `budget` is
    correction tau^2 E[g^2] (eq. 5), with a `correction` of 1 unless a confidence or a measurement asked
    for another; `nrmse` is sqrt(loss_mse / E[g^2]), predicted. `interval` holds, with probability
    `confidence`, the loss MSE of as many fresh samples. `binds` tells whether the threshold kept any
    gain from being taken; when it is False the plan already has the largest gain there is. `gap` is
    None where nothing was optimised.
    """

    strategy: str
    objective: str
    unit: str
    source: str
    base: str
    noise: str
    tau: float
    correction: float
    budget: float
    loss_mse: float
    nrmse: float
    interval: Interval
    confidence: float
    gain: float
    largest_gain: float
    binds: bool
    status: str
    gap: float | None
    seconds: float
    formats: Mapping[str, str]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the ops that leave the base format, sorted."""
        return tuple(sorted(op for op, format in self.formats.items() if format != self.base))

    @property
    def lowered(self) -> dict[str, str]:
        """Formats of the ops that leave the base format."""
        return {op: self.formats[op] for op in self.quantized}
