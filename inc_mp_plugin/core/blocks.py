"""Repeated blocks of a model: modules that run one after the other and hold the same ops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby, pairwise

from inc_mp_plugin.core.graph import Graph, Op

Path = tuple[str, ...]


def repeated_blocks(graph: Graph) -> tuple[str, ...]:
    """Name the repeated blocks of a model, in execution order; none if it has none.

    Modules beside each other are blocks if two of them that follow each other hold the same ops: of the same
    names below the block, kinds, shapes and weights. Where such modules hold others, those that are more
    beside each other count, and the outer ones if they are as many. A block runs once per forward pass, and
    no op of another module runs in between.

    Args:
        graph: from `capture`.

    Example:
        >>> ops = [Op(f"layers.{i}.{name}", "linear", 1, 4, 1) for i in range(2) for name in ("up", "down")]
        >>> repeated_blocks(Graph((*ops, Op("head", "linear", 1, 4, 1)), (), (), {}))
        ('layers.0', 'layers.1')
    """
    paths = [(tuple(op.name.split(".")), op) for op in graph.ops]
    return tuple(".".join(path) for row in _rows(0, paths) for path in row)


def block_of(name: str, blocks: Iterable[str]) -> str | None:
    """Find the block that an op, or a module, lies in; None if it lies in none of these.

    Example:
        >>> block_of("layers.1.up", ["layers.0", "layers.1"]), block_of("layers.10.up", ["layers.1"])
        ('layers.1', None)
    """
    return next((block for block in blocks if name.startswith(f"{block}.")), None)


def _rows(depth: int, ops: Sequence[tuple[Path, Op]]) -> list[list[Path]]:
    """List the rows of blocks in a module, whose name has so many parts, and which holds these ops."""
    parts = [(key, list(members)) for key, members in groupby(ops, lambda pair: pair[0][: depth + 1])]
    names = [key for key, _ in parts]
    children = [(key, members) for key, members in parts if names.count(key) == 1 and members[0][0] != key]
    inner = [row for _, members in children for row in _rows(depth + 1, members)]
    own = [(key, members) for key, members in children if _runs_once(members)]
    contents = [_contents(depth + 1, members) for _, members in own]
    repeated = any(before == after for before, after in pairwise(contents))
    if repeated and len(own) >= max(map(len, inner), default=0):
        return [[key for key, _ in own]]
    return inner


def _runs_once(members: Sequence[tuple[Path, Op]]) -> bool:
    """Tell if a module surely runs once: some op of its does. An expert may get no token."""
    return any(op.calls == 1 and op.share == 1.0 for _, op in members)


def _contents(depth: int, members: Sequence[tuple[Path, Op]]) -> list[tuple[object, ...]]:
    """Describe the ops of a module by what does not depend on its place."""
    return [(path[depth:], op.kind, op.gemms, op.weight_elements) for path, op in members]
