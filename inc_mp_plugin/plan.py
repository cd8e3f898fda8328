"""The vocabulary of the method: what is passed from one stage to the next, all of it frozen."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

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


@dataclass(frozen=True)
class Sensitivity:
    """Loss and sensitivities, sample by sample (eq. 21).

    `loss` has shape (samples,); `input` and `weight` have shape (samples, ops) and hold
    ||z * dg/dz||^2 of an op's inputs and of its weight.
    """

    ops: tuple[str, ...]
    loss: FloatArray
    input: FloatArray
    weight: FloatArray

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
        return Sensitivity(
            tuple(self.ops[index] for index in kept),
            self.loss,
            self.input[:, kept],
            self.weight[:, kept],
        )


@dataclass(frozen=True, slots=True)
class GroupGains:
    """What every configuration of one group gains against the base format.

    `configurations` holds one format per op of `ops`; the first is all base, with gain 0.
    `measured_on` are the ops of the group that the gains were measured on, where that is another one
    of the same structure; `note` says what is missing and why.
    """

    ops: tuple[str, ...]
    configurations: tuple[tuple[str, ...], ...]
    gain: tuple[float, ...]
    stderr: tuple[float, ...]
    measured_on: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gains:
    """The gains of one objective: `unit` is "s" or "byte", `source` measured, modelled or exact."""

    objective: str
    unit: str
    source: str
    base: str
    groups: tuple[GroupGains, ...]

    @property
    def largest(self) -> float:
        """The largest total gain of any plan, whatever its loss."""
        return sum(max(group.gain) for group in self.groups)


@dataclass(frozen=True, slots=True)
class Plan:
    """One format per op, what that is predicted to cost and to gain, and how it was found.

    `unit` and `source` are those of the gains; `budget` is tau^2 E[g^2] (eq. 5); `nrmse` is
    sqrt(loss_mse / E[g^2]), predicted, and thus at most `tau`. `binds` tells whether the threshold kept
    any gain from being taken; when it is False the plan already has the largest gain there is.
    """

    objective: str
    unit: str
    source: str
    base: str
    tau: float
    budget: float
    loss_mse: float
    nrmse: float
    gain: float
    largest_gain: float
    binds: bool
    status: str
    gap: float
    seconds: float
    formats: Mapping[str, str]

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the ops that leave the base format, sorted."""
        return tuple(sorted(op for op, format in self.formats.items() if format != self.base))


@dataclass(frozen=True, slots=True)
class Point:
    """One set of quantized ops: its loss MSE as predicted and as measured."""

    quantized: tuple[str, ...]
    predicted: float
    measured: float


@dataclass(frozen=True, slots=True)
class Validation:
    """Measured loss MSE of a plan and of random plans, on held-out samples.

    `loss_ms` is E[g^2] of those samples, `nrmse` the plan's measured sqrt(loss MSE / E[g^2]);
    `log_correlation` is Pearson's, of log predicted and log measured over the random plans `points`,
    and `ratio` their mean predicted over their mean measured loss MSE.
    """

    samples: int
    loss_ms: float
    tau: float
    nrmse: float
    plan: Point
    points: tuple[Point, ...]
    log_correlation: float
    ratio: float
