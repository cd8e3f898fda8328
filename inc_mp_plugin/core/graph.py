"""The graph of a model: its ops, their matrix products, and the groups that the ops form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from inc_mp_plugin.core.literals import OpKind

# Classes that INC swaps for FP8 ones, by class name as INC does it, and the kind of op of each.
QUANTIZABLE: dict[str, OpKind] = {
    "Linear": "linear",
    "FalconLinear": "linear",
    "Conv2d": "conv2d",
    "Matmul": "bgemm",
}


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
    kind: OpKind
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
