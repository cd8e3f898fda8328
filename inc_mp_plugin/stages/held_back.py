"""Ops that stay in the base format because the consumers of a plan would have no scale for them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import kept_lines
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.sensitivity.scaleless import without_scale
from inc_mp_plugin.sensitivity.scales import DEVICES, Scales
from inc_mp_plugin.targets import CPU_QDQ, check_scale_method, get_target

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.pipeline.recipe import Recipe


def held_back_for(sensitivity: Sensitivity, recipe: Recipe) -> dict[str, str]:
    """Ops that INC has no scale for, each with the reason.

    Under the scales of the recipe's targets, and those on a CPU, where plans for all of them are measured.
    """
    scales = scales_of_all(recipe.targets, recipe.device, recipe.scale_method)
    return without_scale(sensitivity, recipe.model.dtype, recipe.formats, scales)


def scales_of_all(targets: Sequence[str], device: str, method: str | None = None) -> list[Scales]:
    """List the scales of these targets, and of INC on a CPU, where plans for all of them are measured.

    Args:
        targets: names of the consumers.
        device: that those on Gaudi run on.
        method: how INC chooses its scales; each target's default if None.
    """
    on_cpu = method if method in CPU_QDQ.scale_methods else CPU_QDQ.scale_methods[0]
    generation = device if device in DEVICES else DEVICES[1]
    able = [target for target in map(get_target, targets) if target.device == "hpu"]
    return [
        Scales(on_cpu, "cpu"),
        *(Scales(check_scale_method(target, method), generation) for target in able),
    ]


def hold_back(
    sensitivity: Sensitivity, base: str, formats: Collection[str], scales: Collection[Scales]
) -> tuple[Sensitivity, dict[str, str]]:
    """The sensitivities of the ops that INC has scales for, and why it has none for the others.

    How many ops stay in the base format is said, one line per reason.
    """
    held_back = without_scale(sensitivity, base, formats, scales)
    for line in kept_lines(held_back, base):
        say(line)
    return with_scales(sensitivity, held_back), held_back


def with_scales(sensitivity: Sensitivity, held_back: Collection[str]) -> Sensitivity:
    """The same, without the ops that are held back: INC has scales for what is left."""
    return replace(sensitivity.of([op for op in sensitivity.ops if op not in held_back]), maxabs={})
