"""Scales of the consumers of a plan, and the ops that have none there and so stay in the base format."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from inc_mp_plugin.scales.methods import DEVICES, Scales
from inc_mp_plugin.scales.scaleless import without_scale
from inc_mp_plugin.scales.served import ServedScales
from inc_mp_plugin.targets import CPU_QDQ, check_scale_method, get_target

if TYPE_CHECKING:
    from inc_mp_plugin.core.literals import Accelerator
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.stages.job import Job
    from inc_mp_plugin.targets.target import Target


def held_back_for(job: Job, sensitivity: Sensitivity) -> dict[str, str]:
    """List the ops that a consumer of a job has no scale for in INC, {op: reason}."""
    held_back = without_scale(sensitivity, job.base, job.formats, job.consumer_scales)
    return {op: why for op, why in held_back.items() if job.allowed is None or op in job.allowed}


def consumer_scales(
    targets: Iterable[str], device: Accelerator, method: str | None = None
) -> tuple[Scales, ...]:
    """List the scales of these targets, first those with which plans for all targets are measured here.

    Args:
        targets: names of the consumers.
        device: the Gaudi of the consumers that run on one.
        method: scale method; each target's default if None.
    """
    generation = device if device in DEVICES else DEVICES[1]
    consumers = list(map(get_target, targets))
    here = measuring_scales(targets, method)
    beside = [scales_of(target, method, generation) for target in consumers if target.device == "hpu"]
    if here.device != "cpu" and CPU_QDQ in consumers:
        beside.append(scales_of(CPU_QDQ, method, generation))
    return (here, *beside)


def measuring_scales(targets: Iterable[str], method: str | None) -> Scales:
    """Return the scales with which plans are measured here.

    They are those of the first target if it reads checkpoints, else those of INC on a CPU.

    Args:
        targets: names of the consumers.
        method: scale method; the default if None.
    """
    first = next(map(get_target, targets), CPU_QDQ)
    return scales_of(first, method) if first.device is None else Scales(method_on_a_cpu(method), "cpu")


def scales_of(target: Target, method: str | None, device: str = "cpu") -> Scales:
    """Return the scales of a target in FP8.

    Args:
        target: the consumer.
        method: scale method; the target's default if None.
        device: the Gaudi of a consumer that runs on one.

    Raises:
        InputError: the target does not have this method, or the device no such scales.
    """
    name = check_scale_method(target, method)
    if target.device is None:
        return ServedScales(name, target.name)
    return Scales(name, "cpu" if target.device == "cpu" else device)


def method_on_a_cpu(method: str | None) -> str:
    """Return the scale method with which INC measures on a CPU: this one, or the default of a CPU."""
    return method if method in CPU_QDQ.scale_methods else CPU_QDQ.scale_methods[0]


def with_scales(sensitivity: Sensitivity, held_back: Collection[str]) -> Sensitivity:
    """Leave out the ops that are held back: INC has scales for all others."""
    return replace(sensitivity.of([op for op in sensitivity.ops if op not in held_back]), maxabs={})
