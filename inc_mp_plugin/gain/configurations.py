"""The configurations of a group that are worth a price: all of them, or a documented few."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from math import prod

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import OpKind

Configuration = tuple[str, ...]

FREE = 6  # ops with one lower format, all of whose configurations are priced
MOST = 2**FREE


def configurations(
    group: Sequence[str],
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
    ties: Sequence[Sequence[str]] = (),
) -> tuple[tuple[Configuration, ...], str]:
    """List the configurations of a group, all base first.

    A group of at most 64 configurations (six ops that choose between two formats) is listed in full. Of a
    larger group these are listed: all base; and, for each lower format, all ops that may take the format,
    each of these ops alone, and prefixes of these ops by rising sensitivity, which are what an integer
    program would mostly choose. Ops of a tie count as a single op here. Of more than 64 ops none is taken
    alone, and 64 prefixes stand for all.

    Args:
        group: names of the ops.
        formats: the formats that each op may take, the base format first.
        sensitivity: value of each op; a missing op counts as the most sensitive.
        ties: ops that share a format.

    Returns:
        The configurations, and a note on those left out; the note is empty if all are listed.

    Example:
        >>> formats = {"q": ("bf16", "fp8_e4m3"), "qk": ("bf16",)}
        >>> configurations(["q", "qk"], formats, {})
        ((('bf16', 'bf16'), ('fp8_e4m3', 'bf16')), '')
    """
    choices = [formats[op] for op in group]
    count = prod(len(choice) for choice in choices)
    if count <= MOST:
        return tuple(product(*choices)), ""
    selection = tuple(dict.fromkeys(_selection(group, formats, sensitivity, ties)))
    free = sum(len(choice) > 1 for choice in choices)
    return selection, (
        f"{free} ops are free, so of {count:.3g} configurations {len(selection)} were priced: all base, all "
        "low, ops alone, and prefixes by sensitivity"
    )


def _selection(
    group: Sequence[str],
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
    ties: Sequence[Sequence[str]],
) -> Iterator[Configuration]:
    base = {op: formats[op][0] for op in group}
    yield tuple(base.values())
    inside = set(group)
    units = [tuple(op for op in tie if op in inside) for tie in ties if not inside.isdisjoint(tie)]
    tied = {op for unit in units for op in unit}
    units += [(op,) for op in group if op not in tied]
    for lower in dict.fromkeys(format_name for op in group for format_name in formats[op][1:]):
        takers = [unit for unit in units if all(lower in formats[op] for op in unit)]
        yield _with(base, takers, lower)
        for unit in takers if len(takers) <= MOST else []:
            yield _with(base, [unit], lower)
        ordered = sorted(takers, key=lambda unit: sum(sensitivity.get(op, float("inf")) for op in unit))
        step = max(1, len(ordered) // MOST)
        for size in range(2, len(ordered), step):
            yield _with(base, ordered[:size], lower)


def _with(base: Mapping[str, str], units: Sequence[Sequence[str]], lower: str) -> Configuration:
    return tuple({**base, **{op: lower for unit in units for op in unit}}.values())


def in_large_groups(graph: Graph, demands: Demands) -> tuple[list[tuple[str, ...]], frozenset[str]]:
    """Return the ties and the kept ops of groups that are too large to be priced in full.

    Kept ops stay in the base format. A group is too large if it has more than six ops. The prices of smaller
    groups do not depend on the demands, so that a plan for other consumers needs no new prices.
    """
    large = frozenset(op for group in graph.groups if len(group) > FREE for op in group)
    return [tie.ops for tie in demands.ties if large.issuperset(tie.ops)], large & demands.kept.keys()


def free_formats(
    graph: Graph, ops: Collection[str], formats: Sequence[str], kinds: Collection[OpKind]
) -> dict[str, tuple[str, ...]]:
    """List the formats that each op of a graph may take.

    An op that is not free may take the base format alone.

    Args:
        graph: from `capture`.
        ops: names of the ops that may leave the base format.
        formats: all formats, the base format first.
        kinds: kinds of ops that can run in a lower format.
    """
    free = {op.name for op in graph.ops if op.name in ops and op.kind in kinds}
    return {op.name: tuple(formats if op.name in free else formats[:1]) for op in graph.ops}
