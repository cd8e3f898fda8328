"""Rules that a checkpoint of compressed-tensors must keep to so that vLLM runs it as it says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

from inc_mp_plugin.core.errors import few
from inc_mp_plugin.export.checkpoint import Stored
from inc_mp_plugin.export.groups import Group, groups_of, unplaced
from inc_mp_plugin.export.places import STACKS
from inc_mp_plugin.export.schemes import Settings, entry_faults
from inc_mp_plugin.targets.layout import Captured, expert_role, split

_FP8 = ("F8_E4M3", "F8_E5M2")
_CODES = (*_FP8, "I8", "U8", "I32")  # of weights that mean nothing without a scale
_CACHE = ("k_scale", "v_scale")
_HEAD = "lm_head"


@dataclass(frozen=True)
class Facts:
    """A checkpoint as its headers and its config.json tell of it: `tensors` by name, and `settings`."""

    tensors: Mapping[str, Stored]
    settings: Settings

    @cached_property
    def parts(self) -> dict[str, dict[str, Stored]]:
        """Tensors by module and by the last part of their name."""
        parts: dict[str, dict[str, Stored]] = {}
        for name, stored in self.tensors.items():
            parent, child = split(name)
            parts.setdefault(parent, {})[child] = stored
        return parts

    @cached_property
    def quantized(self) -> frozenset[str]:
        """Modules whose weight is codes, each expert of a stack by its own name."""
        names = {
            name
            for name, parts in self.parts.items()
            if "weight_packed" in parts or ("weight" in parts and parts["weight"].dtype in _CODES)
        }
        return frozenset(names.union(*(e for stored, e in self._stacks if stored.dtype in _CODES)))

    @cached_property
    def linear(self) -> tuple[str, ...]:
        """Modules with a matrix, and the experts of stacks, each by its own name."""
        names = {
            name
            for name, parts in self.parts.items()
            if name in self.quantized or ("weight" in parts and len(parts["weight"].shape) == 2)
        }
        return tuple(sorted(names.union(*(experts for _, experts in self._stacks))))

    @cached_property
    def _stacks(self) -> list[tuple[Stored, set[str]]]:
        """Stacks of experts, each with the names of the linear layers in it."""
        stacks = []
        for name, stored in self.tensors.items():
            parent, child = split(name)
            if child in STACKS and len(stored.shape) == 3:
                experts = range(stored.shape[0])
                stacks.append((stored, {f"{parent}.{i}.{role}" for i in experts for role in STACKS[child]}))
        return stacks

    @cached_property
    def captured(self) -> Captured:
        """The linear modules as a target sees them."""
        return Captured(self.linear, {})

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Modules that vLLM runs as one."""
        return tuple(groups_of(self.captured))

    def ignored(self, name: str) -> bool:
        """Tell whether `ignore` names a module, or the fused module that it is part of."""
        return self.settings.ignored(name) or name in self._in_ignored_groups

    @cached_property
    def _in_ignored_groups(self) -> frozenset[str]:
        whole = (group.members for group in self.groups if self.settings.ignored(group.name))
        return frozenset(name for members in whole for name in members)


def faults_of(facts: Facts) -> list[str]:
    """List what is wrong with a checkpoint, one line each.

    Args:
        facts: of the checkpoint.
    """
    return [*_ignore_faults(facts), *_weight_faults(facts), *_scale_faults(facts), *_group_faults(facts)]


def _ignore_faults(facts: Facts) -> Iterator[str]:
    """Yield entries of `ignore` that are not what they seem."""
    fused = [group.name for group in facts.groups]
    # A head that shares its weight has no tensor, and is ignored for the sake of transformers.
    yield from entry_faults(facts.settings.ignore, [*facts.parts, *facts.linear, *fused, _HEAD])


def _weight_faults(facts: Facts) -> Iterator[str]:
    """Yield weights that are stored in another way than config.json says."""
    settings = facts.settings
    inside = [name for name in sorted(facts.quantized) if facts.ignored(name)]
    if inside:
        yield f"in ignore, but stored as codes, which would be taken for numbers: {few(inside)}"
    unknown = unplaced(facts.captured)
    outside = [
        name
        for name in facts.linear
        if name not in facts.quantized
        and name not in unknown
        and not facts.ignored(name)
        and settings.group_of(name, linear=split(name)[1] != _HEAD) is not None
    ]
    if outside:
        yield f"neither in ignore nor quantized, so that vLLM asks for their scales: {few(outside)}"
    homeless = [name for name in sorted(facts.quantized) if settings.group_of(name, linear=True) is None]
    if homeless:
        yield f"stored as codes, but no target of config_groups is theirs: {few(homeless)}"
    heads = [name for name in facts.quantized if split(name)[1] == _HEAD]
    for name in heads:
        if settings.group_of(name, linear=False) is None:
            yield f"{name} is stored as codes, and 'Linear' is not its class in vLLM: name it in targets"


def _scale_faults(facts: Facts) -> Iterator[str]:
    """Yield weights without scales, scales without weights, and scales of a shape that does not fit."""
    without, orphans, inputs, unread, shapes = [], [], [], [], []
    for name, parts in facts.parts.items():
        if name in facts.quantized:
            group = facts.settings.group_of(name) or {}
            activations, weights = group.get("input_activations") or {}, group.get("weights") or {}
            if "weight_scale" not in parts:
                without.append(f"{name}.weight")
            elif not _fits(parts, weights.get("strategy")):
                shapes.append(f"{name}.weight_scale {list(parts['weight_scale'].shape)}")
            static = bool(activations) and activations.get("dynamic") is False
            if static and "input_scale" not in parts:
                inputs.append(name)
            if "input_scale" in parts and not static:
                unread.append(f"{name}.input_scale")
        elif name not in facts.tensors:  # a stack of experts has scales beside it
            orphans += [f"{name}.{child}" for child in parts if child in ("weight_scale", "input_scale")]
        if not facts.settings.has_cache:
            unread += [f"{name}.{child}" for child in parts if child in _CACHE]
    yield from _line("weights that are codes without a weight_scale", without)
    yield from _line("scales without a quantized weight", orphans)
    yield from _line("no input_scale, though config.json says that activations are static", inputs)
    yield from _line("scales that config.json has no use for", unread)
    yield from _line("scales of another shape than the strategy of their weights", shapes)


def _fits(parts: Mapping[str, Stored], strategy: object) -> bool:
    """Tell whether a weight's scale has a value per channel, or a single one, as config.json says."""
    weight, scale = parts.get("weight"), parts["weight_scale"]
    if strategy == "tensor":
        return prod(scale.shape) == 1
    if strategy == "channel" and weight is not None and len(weight.shape) == 2:
        return scale.shape in ((weight.shape[0], 1), (weight.shape[0],))
    return True


def _group_faults(facts: Facts) -> Iterator[str]:
    """Yield modules of vLLM that are in FP8, or in `ignore`, in part."""
    for group in facts.groups:
        stored = group.fault(facts.quantized)
        ignored = [name for name in group.members if facts.settings.ignored(name)]
        if stored:
            yield stored
        elif ignored and len(ignored) < len(group.members) and not facts.settings.ignored(group.name):
            other = next(name for name in group.members if name not in ignored)
            first = " (vLLM looks at expert 0 alone)" if expert_role(other) else ""
            yield f"{group.name}: {ignored[0]} is in ignore, and {other} is not; {group.why}{first}"


def _line(what: str, names: list[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {few(sorted(names))}"
