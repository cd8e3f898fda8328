"""Scales of the consumers of a plan, and the ops that have none there and so stay in the base format."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from inc_mp_plugin.scales.methods import DEVICES, Scales
from inc_mp_plugin.scales.scaleless import without_scale
from inc_mp_plugin.targets import CPU_QDQ, check_scale_method, get_target

if TYPE_CHECKING:
    from inc_mp_plugin.core.literals import Accelerator
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.stages.job import Job


def held_back_for(job: Job, sensitivity: Sensitivity) -> dict[str, str]:
    """List the ops that a consumer of a job has no scale for in INC, {op: reason}."""
    held_back = without_scale(sensitivity, job.base, job.formats, job.consumer_scales)
    return {op: why for op, why in held_back.items() if job.allowed is None or op in job.allowed}


def consumer_scales(
    targets: Iterable[str], device: Accelerator, method: str | None = None
) -> tuple[Scales, ...]:
    """List the scales of these targets, and of INC on a CPU, where plans for all targets are measured.

    Args:
        targets: names of the consumers.
        device: the Gaudi of the consumers that run on one.
        method: scale method of INC; each target's default if None.
    """
    generation = device if device in DEVICES else DEVICES[1]
    on_gaudi = [target for target in map(get_target, targets) if target.device == "hpu"]
    return (
        Scales(method_on_a_cpu(method), "cpu"),
        *(Scales(check_scale_method(target, method), generation) for target in on_gaudi),
    )


def method_on_a_cpu(method: str | None) -> str:
    """Return the scale method with which INC measures on a CPU: this one, or the default of a CPU."""
    return method if method in CPU_QDQ.scale_methods else CPU_QDQ.scale_methods[0]


def with_scales(sensitivity: Sensitivity, held_back: Collection[str]) -> Sensitivity:
    """Leave out the ops that are held back: INC has scales for all others."""
    return replace(sensitivity.of([op for op in sensitivity.ops if op not in held_back]), maxabs={})
