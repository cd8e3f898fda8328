"""Groups of linear modules that vLLM runs as one, by the rules of target vllm-gaudi."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets import VLLM_GAUDI
from inc_mp_plugin.targets.layout import Captured, expert_role


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
    layout = VLLM_GAUDI.lay_out(captured, Serving())
    holders = _holders(captured)
    groups = {
        members: Group(module, members, "vLLM runs them as one module")
        for module, members in holders.items()
        if len(members) > 1 and not any(map(expert_role, members))
    }
    for rule in layout.rules:
        members = tuple(dict.fromkeys(op for module in rule.modules for op in holders.get(module, ())))
        if len(members) > 1:
            groups.setdefault(members, Group(rule.modules[0], members, rule.why))
    return list(groups.values())


def unplaced(captured: Captured) -> dict[str, str]:
    """List the ops that vLLM is not known to have a module for, each with the reason.

    Args:
        captured: the linear ops of a model, and the classes of its modules.
    """
    return dict(VLLM_GAUDI.lay_out(captured, Serving()).unplaced)


def weight_groups(captured: Captured) -> list[tuple[str, ...]]:
    """List the sets of ops whose weights vLLM rounds again to one scale: those of a fused module.

    Args:
        captured: the linear ops of a model, and the classes of its modules.
    """
    return list(dict.fromkeys(members for members in _holders(captured).values() if len(members) > 1))


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
    single = [group for group in weight_groups(captured) if not any(map(expert_role, group))]
    return [*single, *(tuple(ops) for ops in experts.values())]


def _holders(captured: Captured) -> dict[str, tuple[str, ...]]:
    """Collect the ops that each module of vLLM runs."""
    holders: dict[str, list[str]] = defaultdict(list)
    for op, modules in VLLM_GAUDI.lay_out(captured, Serving()).places.items():
        for module in modules:
            holders[module].append(op)
    return {module: tuple(ops) for module, ops in holders.items()}
