"""Effort of a recipe before it is run, in words: memory and time of its sensitivity measurement."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from inc_mp_plugin.core.footprint import Footprint, footprint
from inc_mp_plugin.core.formats import get_format
from inc_mp_plugin.runtime.pace import counted, duration

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.stages.job import Job


def effort_lines(recipe: Recipe, job: Job, graph: Graph) -> list[str]:
    """Say what a sensitivity measurement will take: its memory beside the weights, and its time on a CPU.

    Args:
        recipe: with its samples.
        job: of the recipe.
        graph: from `capture`, of one batch.
    """
    needed = footprint(graph, get_format(job.base).bits // 8)
    modes = [f"{needed.high / 1e9:.1f} GB beside the weights"]
    if needed.low < needed.high:
        modes.append(f"{needed.low / 1e9:.1f} GB with run.memory=low")
    batches = math.ceil(recipe.calibration.samples / recipe.calibration.batch_size)
    return [
        f"A sensitivity pass takes about {', or '.join(modes)}",
        f"On this CPU it takes about {duration(_seconds(job, graph, needed, batches))} "
        f"for {counted(batches, 'batch')}, without plans that are measured",
    ]


def _seconds(job: Job, graph: Graph, needed: Footprint, batches: int) -> float:
    import torch

    from inc_mp_plugin.scales.dtypes import dtype_of
    from inc_mp_plugin.sensitivity.effort import estimated_s, passes
    from inc_mp_plugin.sensitivity.memory import takes_low

    loss, kl = "loss" in job.yardsticks, "kl" in job.yardsticks
    measured = job.noise_scales is not None
    replays = takes_low(job.memory, needed, torch.device("cpu"))
    count = passes(
        losses=loss + kl * job.estimate.draws, measured=measured, drift=measured and loss, replays=replays
    )
    return estimated_s(graph, dtype_of(job.base), batches=batches, passes=count)
