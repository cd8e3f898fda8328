"""The configurations of a group that are worth a price: all of them, or a documented few."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import product
from math import prod

from inc_mp_plugin.plan import Graph

Configuration = tuple[str, ...]

MOST = 64  # six free ops with one lower format


def configurations(
    group: Sequence[str],
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
) -> tuple[tuple[Configuration, ...], str]:
    """List the configurations of a group, all base first.

    Up to 64 of them (six ops that are free to choose between two formats) are listed in full. Of a
    larger group these: all base; for each lower format, every op that may take it; each op alone; and
    prefixes of the ops ordered by sensitivity, the least sensitive first, which are the sets that an
    integer program would mostly choose.

    Args:
        group: its ops.
        formats: the formats that each op may take, the base format first.
        sensitivity: of each op; one that is missing counts as the most sensitive.

    Returns:
        The configurations, and a note that is empty if they are all there are.

    Example:
        >>> formats = {"q": ("bf16", "fp8_e4m3"), "qk": ("bf16",)}
        >>> configurations(["q", "qk"], formats, {})
        ((('bf16', 'bf16'), ('fp8_e4m3', 'bf16')), '')
    """
    choices = [formats[op] for op in group]
    count = prod(len(choice) for choice in choices)
    if count <= MOST:
        return tuple(product(*choices)), ""
    some = tuple(dict.fromkeys(_some(group, formats, sensitivity)))
    free = sum(len(choice) > 1 for choice in choices)
    return some, (
        f"{free} ops are free, so of {count} configurations {len(some)} were priced: all base, all low, "
        "each op alone, and prefixes by sensitivity"
    )


def _some(
    group: Sequence[str],
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
) -> Iterator[Configuration]:
    base = {op: formats[op][0] for op in group}
    yield tuple(base.values())
    for low in dict.fromkeys(format for op in group for format in formats[op][1:]):
        able = [op for op in group if low in formats[op]]
        yield tuple({**base, **dict.fromkeys(able, low)}.values())
        for op in able:
            yield tuple({**base, op: low}.values())
        ordered = sorted(able, key=lambda op: sensitivity.get(op, float("inf")))
        for size in range(2, len(ordered)):
            yield tuple({**base, **dict.fromkeys(ordered[:size], low)}.values())


def free_formats(
    graph: Graph, ops: Collection[str], formats: Sequence[str], kinds: Collection[str]
) -> dict[str, tuple[str, ...]]:
    """Formats that each op of a graph may take: the base format alone where it is not free.

    Args:
        graph: from `capture`.
        ops: those that may leave the base format.
        formats: the base format first.
        kinds: kinds of ops that can run in a lower format.
    """
    able = {op.name for op in graph.ops if op.name in ops and op.kind in kinds}
    return {op.name: tuple(formats if op.name in able else formats[:1]) for op in graph.ops}
