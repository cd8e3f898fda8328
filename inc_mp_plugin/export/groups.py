"""Groups of linear modules that vLLM runs as one, by the rules of target vllm."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets import VLLM
from inc_mp_plugin.targets.layout import Captured, expert_role

_FUSED = "vLLM runs them as one module"
_EXPERTS = "one kernel runs all experts of a block"


@dataclass(frozen=True, slots=True)
class Group:
    """Modules that run as one: vLLM's name of it, its members, and what makes it one."""

    name: str
    members: tuple[str, ...]
    why: str

    def fault(self, lowered: Collection[str]) -> str:
        """Say that the group is in FP8 in part; return "" if it is whole.

        Args:
            lowered: modules in FP8.
        """
        inside = [name for name in self.members if name in lowered]
        outside = [name for name in self.members if name not in lowered]
        if not inside or not outside:
            return ""
        return (
            f"{self.name}: {len(inside)} of its {len(self.members)} parts are in FP8 "
            f"({inside[0]}), and {outside[0]} is not; {self.why}"
        )


def groups_of(captured: Captured) -> list[Group]:
    """List the groups of a model whose members must all be in FP8, or none: projections, experts.

    Args:
        captured: the linear ops of a model, and the classes of its modules as far as they are known.
    """
    return [
        Group(module, members, _EXPERTS if expert_role(members[0]) else _FUSED)
        for module, members in _holders(captured).items()
        if len(members) > 1
    ]


def unplaced(captured: Captured) -> dict[str, str]:
    """List the ops that vLLM is not known to have a module for, each with the reason.

    Args:
        captured: the linear ops of a model, and the classes of its modules.
    """
    return dict(VLLM.lay_out(captured, Serving()).unplaced)


def weight_groups(captured: Captured) -> list[tuple[str, ...]]:
    """List the sets of ops whose weights vLLM rounds again to one scale.

    These are the ops of a fused module, and gate and up of each expert.

    Args:
        captured: the linear ops of a model, and the classes of its modules.
    """
    pairs: dict[tuple[str, int], list[str]] = defaultdict(list)
    for op in captured.ops:
        role = expert_role(op)
        if role is not None and role[2] != "down":
            pairs[role[:2]].append(op)
    return [*_fused(captured), *(tuple(ops) for ops in pairs.values())]


def input_groups(captured: Captured) -> list[tuple[str, ...]]:
    """List the sets of ops that vLLM runs with the largest of their input scales.

    These are the ops of a fused module; of a layer of experts, all gates and ups, and all downs.

    Args:
        captured: the linear ops of a model, and the classes of its modules.
    """
    experts: dict[tuple[str, bool], list[str]] = defaultdict(list)
    for op in captured.ops:
        role = expert_role(op)
        if role is not None:
            experts[role[0], role[2] == "down"].append(op)
    return [*_fused(captured), *(tuple(ops) for ops in experts.values())]


def _fused(captured: Captured) -> list[tuple[str, ...]]:
    """List the ops of each fused module, of experts none."""
    return [ops for ops in _holders(captured).values() if len(ops) > 1 and expert_role(ops[0]) is None]


def _holders(captured: Captured) -> dict[str, tuple[str, ...]]:
    """Collect the ops that each module of vLLM runs."""
    holders: dict[str, list[str]] = defaultdict(list)
    for op, modules in VLLM.lay_out(captured, Serving()).places.items():
        for module in modules:
            holders[module].append(op)
    return {module: tuple(ops) for module, ops in holders.items()}
