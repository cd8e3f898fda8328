"""Structure of a group: the ops that each op waits for, and a hash that alike groups share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inc_mp_plugin.core.graph import Op

if TYPE_CHECKING:
    from torch.fx import Node

Groups = Sequence[Sequence[str]]


def waits_for(nodes: Sequence[Node], names: Mapping[Node, str], groups: Groups) -> dict[str, tuple[str, ...]]:
    """Name, for every op, the ops of its group whose results it reads with no other op in between.

    Args:
        nodes: all nodes of the graph, in execution order.
        names: name of the op, by its node.
        groups: names of the ops of each group.
    """
    group_of = {op: index for index, group in enumerate(groups) for op in group}
    order = {op: index for index, op in enumerate(group_of)}
    nearest = _nearest_above(nodes, names, group_of)
    above: dict[str, set[str]] = {op: set() for op in group_of}
    for node, op in names.items():
        above[op] |= {other for other in nearest[node] if group_of[other] == group_of[op]} - {op}
    return {op: tuple(sorted(others, key=order.__getitem__)) for op, others in above.items()}


def structures(
    nodes: Sequence[Node], names: Mapping[Node, str], groups: Groups, ops: Mapping[str, Op]
) -> tuple[str, ...]:
    """Hash every group: its ops with their shapes and order, and all nodes that run between them.

    Groups with the same hash take the same time in the same configuration, and are measured once.

    Args:
        nodes: all nodes of the graph, in execution order.
        names: name of the op, by its node.
        groups: names of the ops of each group, in execution order.
        ops: every op, by its name.
    """
    group_of = {op: index for index, group in enumerate(groups) for op in group}
    nearest = _nearest_above(nodes, names, group_of)
    first_below = _first_group_below(nodes, names, group_of)
    between: list[list[str]] = [[] for _ in groups]
    for node in nodes:
        above = max((group_of[op] for op in nearest[node]), default=None)
        if above is not None and node not in names and first_below.get(node) == above:
            value = node.meta.get("val")
            between[above].append(f"{node.target} {tuple(getattr(value, 'shape', ()))}")
    return tuple(_hash(group, ops, inner) for group, inner in zip(groups, between, strict=True))


def _nearest_above(
    nodes: Sequence[Node], names: Mapping[Node, str], group_of: Mapping[str, int]
) -> dict[Node, frozenset[str]]:
    """Find the ops above each node with no op in between; of several groups only the last one counts."""
    nearest: dict[Node, frozenset[str]] = {}
    for node in nodes:
        above = {
            op
            for source in node.all_input_nodes
            for op in ({names[source]} if source in names else nearest[source])
        }
        last = max((group_of[op] for op in above), default=-1)
        nearest[node] = frozenset(op for op in above if group_of[op] == last)
    return nearest


def _first_group_below(
    nodes: Sequence[Node], names: Mapping[Node, str], group_of: Mapping[str, int]
) -> dict[Node, int]:
    """Find, for each node, the index of the first group that has an op below the node.

    Nodes above no op are left out.
    """
    first: dict[Node, int] = {}
    for node in reversed(nodes):
        below = group_of[names[node]] if node in names else first.get(node)
        if below is not None:
            for source in node.all_input_nodes:
                first[source] = min(first.get(source, below), below)
    return first


def _hash(group: Sequence[str], ops: Mapping[str, Op], between: Sequence[str]) -> str:
    place = {op: index for index, op in enumerate(group)}
    parts = [
        f"{op.kind} {[tuple(gemm) for gemm in op.gemms]} {op.weight_elements} {op.tied} "
        f"{[place[other] for other in op.after]}"
        for op in (ops[name] for name in group)
    ]
    return hashlib.sha256("\n".join([*parts, *between]).encode()).hexdigest()[:16]
