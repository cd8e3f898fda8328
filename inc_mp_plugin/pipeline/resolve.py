"""A recipe, resolved into a job: names to values, and every default decided, once."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.literals import IN_MEMORY
from inc_mp_plugin.core.plan import VALUE_METHODS
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.pipeline.data import heldout_of
from inc_mp_plugin.stages.consumer_scales import consumer_scales, scales_of
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.targets import CPU_QDQ, get_target

if TYPE_CHECKING:
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.scales.methods import Scales


def job_of(recipe: Recipe, allowed: Collection[str] | None = None) -> Job:
    """Resolve a recipe: sections to values, names to scales, and open settings to their defaults.

    Args:
        recipe: the checked recipe.
        allowed: names of the ops that may leave the base format; all if None.

    Raises:
        InputError: the device does not have the scales that a price needs.
    """
    request = None if recipe.request is None else Request(**recipe.request.model_dump())
    job = Job(
        base=recipe.model.dtype,
        formats=recipe.formats,
        objective=recipe.objective,
        tau=recipe.tau,
        kl=recipe.kl,
        gain_fraction=recipe.gain_fraction,
        budget=recipe.budget,
        constraint=recipe.constraint,
        strategy=recipe.strategy,
        seed=recipe.seed,
        confidence=recipe.confidence,
        noise=recipe.noise,
        estimate=Estimate(recipe.run.estimator, recipe.run.draws, recipe.seed),
        memory=recipe.run.memory,
        parallel=recipe.run.parallel,
        consumer_scales=consumer_scales(recipe.targets, recipe.device, recipe.scale_method),
        scale_method=recipe.scale_method,
        device=recipe.device,
        request=request or Request(recipe.calibration.sequence_length),
        script_request=request,
        timing=timing_of(recipe),
        targets=recipe.targets,
        serving=Serving(recipe.kv_cache, recipe.attention, recipe.reuse_cache),
        allowed=None if allowed is None else frozenset(allowed),
        model_name=recipe.model.name_or_path + ("-merged" if recipe.model.merge_adapters else ""),
        heldout=heldout_of(recipe),
        verify=recipe.verify,
        verify_confidence=recipe.verify_confidence,
        recipe=recipe.model_dump(mode="json"),
    )
    if recipe.model.weights == IN_MEMORY:  # the measurements are in the folder, and so are their scales
        return job
    if recipe.noise == "measured":
        first = get_target(recipe.targets[0])
        job = replace(job, noise_scales=scales_of(first, recipe.scale_method, recipe.device))
    return replace(job, value_scales=value_scales(recipe)) if recipe.strategy in VALUE_METHODS else job


def value_scales(recipe: Recipe) -> Scales:
    """Return the scales with which EAGL and ALPS round: those of the first target that runs FP8.

    Raises:
        InputError: the recipe's device does not have the scales of that target.
    """
    with_fp8 = [target for target in map(get_target, recipe.targets) if target.scale_methods]
    return scales_of(with_fp8[0] if with_fp8 else CPU_QDQ, recipe.scale_method, recipe.device)


def timing_of(recipe: Recipe) -> TimingSettings | None:
    """Return the settings for measuring time; None if a recipe asks for no measurement."""
    if recipe.timing is not None:
        return TimingSettings(**recipe.timing.model_dump())
    return TimingSettings() if recipe.objective == "empirical_time" else None
