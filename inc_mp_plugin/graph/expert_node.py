"""Routed experts in a graph: one node per layer while it is captured, three ops per expert afterwards."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from inc_mp_plugin.core.graph import Op

NODE = "inc_mp_plugin::experts"
# The largest number below 1: an expert that nearly every pass reaches is still an expert.
_NEARLY_ALWAYS = math.nextafter(1.0, 0.0)

torch.library.define(NODE, "(Tensor hidden, Tensor routing) -> Tensor")


@torch.library.register_fake(NODE)  # type: ignore[untyped-decorator]
def _shape(hidden: Tensor, routing: Tensor) -> Tensor:
    return torch.empty_like(hidden)


def emit(hidden: Tensor, routing: Tensor, *unused: Any, **also_unused: Any) -> Tensor:
    """Put the node of one layer of experts into the graph that is being captured.

    Args:
        hidden: tokens, shape (tokens, hidden).
        routing: numbers of each token's experts, shape (tokens, experts per token).
        unused: the weights of the outputs of the experts.
        also_unused: the same, by name.
    """
    del unused, also_unused
    output: Tensor = torch.ops.inc_mp_plugin.experts(hidden, routing)
    return output


def emit_places(hidden: Tensor, *, experts: int, each: int) -> Tensor:
    """Put the node of a layer into the graph that takes one row per token and expert.

    Args:
        hidden: shape (experts x tokens, hidden), expert by expert.
        experts: their number.
        each: number of experts that a token is sent to; its other rows are zeros.
    """
    # Only the shape of the routing counts, but the node must hang together with what came before.
    return emit(hidden, hidden.reshape(experts, -1, hidden.shape[-1])[:each, :, 0].T)


@dataclass(frozen=True, slots=True)
class ExpertLayer:
    """The experts that a node stands for, by module name, all alike; or the reason why they are no ops."""

    experts: Mapping[str, nn.Module]
    reason: str = ""


class Call(NamedTuple):
    """One run of a layer: number of tokens, experts per token, and a tensor of tokens for its type."""

    tokens: int
    each: int
    like: Tensor

    @staticmethod
    def of(node: Node) -> Call:
        """Return the run that a node stands for."""
        hidden, routing = (argument.meta["val"] for argument in node.all_input_nodes)
        tokens, each = routing.shape
        return Call(tokens, each, hidden)


def share_of(calls: Iterable[Call], experts: int) -> float:
    """Return the expected fraction of passes in which an expert gets a token.

    All E experts are equally likely. A token goes to k of them, so that it leaves a given expert out with
    probability 1 - k / E; all T tokens leave the expert out with probability (1 - k / E)^T.
    """
    left_out = math.prod((1 - call.each / experts) ** call.tokens for call in calls)
    return min(1 - left_out, _NEARLY_ALWAYS)


def expert_ops(layer: ExpertLayer, ops: Sequence[Op], calls: Sequence[Call], samples: int) -> tuple[Op, ...]:
    """List the ops of all experts of a layer, expert by expert.

    In a pass that reaches an expert, the expert gets T k / (E share) of T tokens, so that rows times share
    are T k / E, the average over all passes.

    Args:
        layer: the experts.
        ops: the ops of a single expert, captured with any number of rows.
        calls: runs of the layer in one pass.
        samples: number of samples in the batch.
    """
    number = len(layer.experts)
    share = share_of(calls, number)
    rows = [max(1, round(call.tokens * call.each / (number * share))) for call in calls]
    pairs = sum(call.tokens * call.each for call in calls)
    alike = [
        replace(
            op,
            macs=sum(gemm.macs // gemm.rows for gemm in op.gemms) * pairs // (number * samples),
            calls=op.calls * len(calls),
            gemms=tuple(gemm._replace(rows=n) for n in rows for gemm in op.gemms),
            share=share,
        )
        for op in ops
    ]
    return tuple(
        replace(op, name=f"{name}.{op.name}", after=tuple(f"{name}.{other}" for other in op.after))
        for name in layer.experts
        for op in alike
    )


def in_place_of_nodes(
    ops: Iterable[Op], groups: Iterable[Sequence[str]], layers: Mapping[str, Sequence[Op]]
) -> tuple[tuple[Op, ...], tuple[tuple[str, ...], ...]]:
    """Put the ops of every layer in the place of the op that stood for its node.

    Args:
        ops: all ops in execution order; a single op of the layer's name stands for each layer.
        groups: groups of names of ops.
        layers: the ops of each layer, by its name.

    Returns:
        All ops, and their groups. Ops that waited for a layer wait for the last ops of all its experts.
    """
    members = {name: [op.name for op in inner] for name, inner in layers.items()}
    waited_for = {name: {other for op in inner for other in op.after} for name, inner in layers.items()}
    last = {name: [op for op in inner if op not in waited_for[name]] for name, inner in members.items()}

    def named(names: Collection[str], table: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
        return tuple(chain.from_iterable(table.get(name, (name,)) for name in names))

    all_ops: list[Op] = []
    for op in ops:
        after = named(op.after, last)
        if op.name in layers:
            all_ops += [replace(inner, after=inner.after or after) for inner in layers[op.name]]
        else:
            all_ops.append(replace(op, after=after))
    return tuple(all_ops), tuple(named(group, members) for group in groups)
