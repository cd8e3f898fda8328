"""Places where a consumer runs the ops of a captured model: its modules, and which of them go together."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from inc_mp_plugin.core.graph import Graph

Member = TypeVar("Member", bound=Hashable)

PREFILL, DECODE = "prefill", "decode"

_MIXTRAL = {"MixtralSparseMoeBlock", "GaudiMixtralSparseMoeBlock"}
_EXPERT = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)")
_ROLES = {"gate_proj": "gate", "w1": "gate", "up_proj": "up", "w3": "up", "down_proj": "down", "w2": "down"}


@dataclass(frozen=True, slots=True)
class Captured:
    """Facts that a layout follows from: ops, all modules {name: class}, and ops whose weight is tied."""

    ops: tuple[str, ...]
    modules: Mapping[str, str]
    tied: frozenset[str] = frozenset()

    @staticmethod
    def of(graph: Graph) -> Captured:
        """Take these facts from a graph."""
        tied = frozenset(op.name for op in graph.ops if op.tied)
        return Captured(tuple(op.name for op in graph.ops), graph.modules, tied)


@dataclass(frozen=True, slots=True)
class Rule:
    """Modules that must all run in one format."""

    modules: tuple[str, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Need:
    """A condition: if `module` runs in FP8, `needed` must, too."""

    module: str
    needed: str
    why: str


@dataclass(frozen=True)
class Layout:
    """A consumer's modules, and how it runs the ops of a captured model in them.

    `trees` are its module trees, {name: class}: one per version of the consumer that names modules
    differently; a file must serve them all. `places` maps each op to the modules that run it, those of
    all trees. `kept` are modules that must stay in the base format, and `unplaced` ops that the consumer
    has no module for, each with the reason. `caches` are the modules that hold the KV cache, `cached` the
    products that read from it, `idle` the ops that do not run as such in a pass ("prefill", "decode").
    `resting` are modules that never run the way the model is served, {name: what runs instead}, and
    `routers` choose experts.
    """

    trees: tuple[Mapping[str, str], ...]
    places: Mapping[str, tuple[str, ...]]
    rules: tuple[Rule, ...] = ()
    needs: tuple[Need, ...] = ()
    kept: Mapping[str, str] = field(default_factory=dict)
    unplaced: Mapping[str, str] = field(default_factory=dict)
    caches: tuple[str, ...] = ()
    cached: frozenset[str] = frozenset()
    idle: Mapping[str, frozenset[str]] = field(default_factory=dict)
    resting: Mapping[str, str] = field(default_factory=dict)
    routers: tuple[str, ...] = ()


def split(name: str) -> tuple[str, str]:
    """Split a module name into parent and child.

    Example:
        >>> split("model.layers.0.mlp")
        ('model.layers.0', 'mlp')
    """
    parent, _, child = name.rpartition(".")
    return parent, child


def attention_layers(modules: Iterable[str]) -> list[str]:
    """List the names of the modules that hold the products of attention, or a consumer's KV cache."""
    parents = [parent for parent, child in map(split, modules) if child in ("matmul_qk", "k_cache")]
    return list(dict.fromkeys(parents))


def expert_role(op: str) -> tuple[str, int, str] | None:
    """Return block, number and role ("gate", "up", "down") of an expert's op; None for other ops.

    Example:
        >>> expert_role("model.layers.0.mlp.experts.3.w1")
        ('model.layers.0.mlp', 3, 'gate')
    """
    match = _EXPERT.fullmatch(op)
    if match is None or match[3] not in _ROLES:
        return None
    return match[1], int(match[2]), _ROLES[match[3]]


def expert_blocks(ops: Iterable[str]) -> dict[str, dict[str, tuple[int, str]]]:
    """Group the ops of experts by their block: {block: {op: (number, role)}}."""
    blocks: dict[str, dict[str, tuple[int, str]]] = defaultdict(dict)
    for op in ops:
        role = expert_role(op)
        if role is not None:
            blocks[role[0]][op] = role[1:]
    return dict(blocks)


def mixtral_blocks(captured: Captured, blocks: Iterable[str]) -> dict[str, str]:
    """Map the blocks of experts of a Mixtral to the names that both consumers on Gaudi give them."""
    return {
        block: f"{split(block)[0]}.block_sparse_moe"
        for block in blocks
        if captured.modules.get(block) in _MIXTRAL
    }


def components(sets: Iterable[Collection[Member]]) -> list[frozenset[Member]]:
    """Unite sets that share a member.

    Example:
        >>> [sorted(union) for union in components([["q", "k"], ["o"], ["k", "v"]])]
        [['k', 'q', 'v'], ['o']]
    """
    united: dict[Member, set[Member]] = {}
    for members in sets:
        new = set(members)
        parts = list({id(united[name]): united[name] for name in members if name in united}.values())
        whole = max(parts, key=len, default=new)  # the members of the smaller parts move into it
        for part in (new, *(part for part in parts if part is not whole)):
            whole |= part
            united.update(dict.fromkeys(part, whole))
    return [frozenset(union) for union in {id(union): union for union in united.values()}.values()]
