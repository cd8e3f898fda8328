"""The vocabulary of the method: what is passed from one stage to the next, all of it frozen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from inc_mp_plugin.core.demands import Serving


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
    whose results it needs, with no other op in between. `share` is the expected fraction of forward
    passes in which it runs: below 1 for an expert, under even routing.
    """

    name: str
    kind: str
    macs: int
    weight_elements: int
    calls: int
    tied: bool = False
    gemms: tuple[Gemm, ...] = ()
    after: tuple[str, ...] = ()
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Unsupported:
    """A matrix product or convolution seen in the graph that cannot be quantized, with the reason."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Graph:
    """Contents of a forward pass: ops in execution order and their groups.

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


@dataclass(frozen=True, slots=True)
class TieCost:
    """Cost of a tie: the gain that would come on top if its ops could choose on their own.

    To first order: at the price, in gain per loss MSE, that the loss budget has in the relaxed program.
    """

    ops: tuple[str, ...]
    why: str
    cost: float


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One format per op, what that is predicted to cost and to gain, and how it was found.

    `unit` and `source` are those of the gains; `noise` is the model that priced losses. `loss_budget` is
    correction tau^2 E[g^2] (eq. 5), with a `correction` of 1 unless a confidence or a measurement asked
    for another; `nrmse` is sqrt(loss_mse / E[g^2]), predicted. `interval` holds, with probability
    `confidence`, the loss MSE of as many fresh samples. `binds` tells whether the threshold kept any
    gain from being taken; when it is False the plan already has the largest gain there is. `gap` is
    None where nothing was optimised. `targets`, `serving` and `ties` are what the plan was held to.
    """

    strategy: str
    objective: str
    unit: str
    source: str
    base: str
    noise: str
    tau: float
    correction: float
    loss_budget: float
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
    targets: tuple[str, ...] = ()
    serving: Serving = Serving()
    ties: tuple[TieCost, ...] = ()

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the ops that leave the base format, sorted."""
        return tuple(sorted(op for op, format_name in self.formats.items() if format_name != self.base))

    @property
    def lowered(self) -> dict[str, str]:
        """Formats of the ops that leave the base format."""
        return {op: self.formats[op] for op in self.quantized}
