"""Partition of a data-flow DAG into sequential sub-graphs (section 2.3.1, appendix B)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Hashable, Mapping, Sequence
from itertools import accumulate
from typing import TypeVar

Vertex = TypeVar("Vertex", bound=Hashable)


def partition(predecessors: Mapping[Vertex, Sequence[Vertex]], ops: Collection[Vertex]) -> list[list[Vertex]]:
    """Group the ops of a DAG so that the groups run strictly one after the other.

    Vertices with no op above them are the prologue and become one source; of the others, those with
    no op below become one sink. With ASAP(v) the longest path from the source to v and ALAP(v) the
    latest level of v that keeps the longest path, v is a *cut* iff ASAP(v) = ALAP(v) = l and no other
    vertex's interval [ASAP, ALAP] covers l. These are exactly the vertices comparable with every
    other vertex. A group is the ops after one cut up to and including the next one.

    Args:
        predecessors: of each vertex, the vertices it reads from; in an order in which every vertex
            comes after its predecessors.
        ops: the vertices to be grouped.

    Returns:
        The groups in execution order; inside a group, the order of `predecessors`. O(V + E).

    Raises:
        ValueError: a vertex comes before one of its predecessors.

    Example:
        A diamond: `q` and `k` can overlap, `qk` merges them, `o` follows.

        >>> partition({"q": [], "k": [], "qk": ["q", "k"], "o": ["qk"]}, {"q", "k", "qk", "o"})
        [['q', 'k', 'qk'], ['o']]
    """
    selected = set(ops)
    between = _between_ops(predecessors, selected)
    inner = {v: [p for p in predecessors[v] if p in between] for v in between}
    asap: dict[Vertex, int] = {}
    for v, above in inner.items():
        asap[v] = 1 + max((asap[p] for p in above), default=0)
    depth = max(asap.values(), default=0)
    alap = dict.fromkeys(inner, depth)
    for v in reversed(inner):
        for p in inner[v]:
            alap[p] = min(alap[p], alap[v] - 1)

    # How many intervals cover each level: a difference array. Every level holds a vertex of the
    # longest path, so a level covered once holds a cut and nothing else.
    steps = [0] * (depth + 2)
    for v in inner:
        steps[asap[v]] += 1
        steps[alap[v] + 1] -= 1
    cuts = [level for level, cover in enumerate(accumulate(steps)) if cover == 1]

    groups: dict[int, list[Vertex]] = {}
    for v in inner:
        if v in selected:
            groups.setdefault(bisect_left(cuts, asap[v]), []).append(v)
    return [groups[index] for index in sorted(groups)]


def _between_ops(predecessors: Mapping[Vertex, Sequence[Vertex]], ops: set[Vertex]) -> dict[Vertex, None]:
    """Find the vertices that are ops, or have an op both above and below them, in the given order."""
    has_op_above: dict[Vertex, bool] = {}
    for v, above in predecessors.items():
        if any(p not in has_op_above for p in above):
            message = f"vertex {v!r} comes before one of its predecessors"
            raise ValueError(message)
        has_op_above[v] = any(p in ops or has_op_above[p] for p in above)
    has_op_below: set[Vertex] = set()
    for v in reversed(list(predecessors)):
        if v in ops or v in has_op_below:
            has_op_below.update(predecessors[v])
    return {v: None for v in predecessors if v in ops or (has_op_above[v] and v in has_op_below)}
