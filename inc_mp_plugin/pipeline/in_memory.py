"""Planning a model that is in memory, in a folder that all commands accept."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import Serving, kept_lines
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.plan import VALUE_METHODS
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.subject import (
    base_format,
    subject_in_memory,
    subject_measured_before,
    with_data_of_all_ranks,
)
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.pipeline.data import through_of
from inc_mp_plugin.pipeline.deprecated import noise_from, serving_from, timing_from
from inc_mp_plugin.pipeline.keys_in_memory import heldout_batches, recipe_of
from inc_mp_plugin.pipeline.resolve import job_of, value_scales
from inc_mp_plugin.pipeline.tune import in_all_processes, run_stages
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.stages.consumer_scales import consumer_scales
from inc_mp_plugin.stages.gains import check_prices
from inc_mp_plugin.stages.sensitivity import measured_from
from inc_mp_plugin.targets import CPU_QDQ, check_scale_method, get_target

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from torch import nn

    from inc_mp_plugin.core.literals import (
        Accelerator,
        Attention,
        KVCache,
        NoiseModel,
        Objective,
        Strategy,
        Yardstick,
    )
    from inc_mp_plugin.core.plan import Plan
    from inc_mp_plugin.core.request import Request
    from inc_mp_plugin.model.heldout import HeldOut, HeldOutBatches
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.deprecated import Clock, Noise
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.scales.methods import Scales
    from inc_mp_plugin.stages.job import Job


def tune(
    model: nn.Module,
    batches: Iterable[Any] | None,
    *,
    tau: float | None = None,
    kl: float | None = None,
    gain_fraction: float | None = None,
    budget: float | None = None,
    constraint: Yardstick | None = None,
    objective: Objective = "memory",
    strategy: Strategy = "ip_mse",
    seed: int = 0,
    confidence: float | None = None,
    noise: NoiseModel | Noise | None = "uniform",
    scale_method: str | None = None,
    scales: Scales | None = None,
    formats: Sequence[str] = ("fp8_e4m3",),
    device: Accelerator = "gaudi2",
    request: Request | Mapping[str, Any] | None = None,
    timing: TimingSettings | Mapping[str, Any] | None = None,
    clock: Clock | None = None,
    loss_fn: LossFunction | None = None,
    allowed: Collection[str] | None = None,
    verify: bool = False,
    verify_confidence: float = VERIFY_CONFIDENCE,
    validation: Iterable[Any] | Mapping[str, Any] | None = None,
    targets: Sequence[str] = (),
    kv_cache: KVCache = "bf16",
    attention: Attention = "eager",
    reuse_cache: bool = False,
    run: Mapping[str, Any] | None = None,
    serving: Serving | None = None,
    out: str | Path,
) -> Plan:
    """Plan a model that is in memory: capture, sensitivities, gains, program, and measurement if asked for.

    The keys of a recipe have their names here, and mean the same.

    Args:
        model: in its base format; it leaves as it came.
        batches: calibration batches, the first of which also serves to capture the graph. With None, the
            sensitivities are those that another process measured of this model in `out`. Of several
            processes of torch.distributed each gives its own batches; the plan is the same in all.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        kl: threshold of the KL divergence from the model in its base format, nats per token (per sample of a
            classifier); with tau, both hold.
        gain_fraction: instead, the least gain, as a fraction of the largest; the plan has the least KL
            divergence or loss.
        budget: instead, the most cost, as a fraction of what everything costs in the base format.
        constraint: "kl" or "loss", the yardstick that is least for a given gain; by default that of the
            threshold, else "kl" if the model predicts a distribution and has no `loss_fn`.
        objective: "memory", "theoretical_time", "bit_operations", "roofline" or "empirical_time".
        strategy: "ip_mse"; "eagl" or "alps", which price ops in other ways; or a baseline: "random" (of
            `seed`), "prefix" or "uniform".
        seed: seed of the order of "random".
        confidence: level of the interval whose upper end is within the thresholds, such as 0.95.
        noise: "uniform" as in the paper (eq. 16 to 18), "log_uniform" (see `core.formats.alpha`), or
            "measured", as INC rounds with its scales.
        scale_method: INC's method of choosing scales; if None, each target's default, and without targets
            that of a CPU. Ops that have no scale in a target or on a CPU stay in the base format. Measured
            noise, "eagl" and "alps" round as the first target in FP8 does, or as a CPU.
        scales: instead, the scales that all of this is done with.
        formats: formats below the base format.
        device: accelerator that time is modelled for.
        request: request that time is priced for, or a mapping of its fields; if None, the forward pass of
            the first batch is measured.
        timing: where and how long time is measured, or a mapping of such settings; if None, on the CPU for
            "empirical_time", and else not.
        clock: deprecated; see `timing`.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
        allowed: names of the ops that may leave the base format; all if None.
        verify: measure plans on held-out samples, and correct the budgets until the thresholds surely hold.
        verify_confidence: level of the intervals of measured losses.
        validation: held-out batches that the plan and random plans are measured on, the plan through INC in
            a copy of the model; or a mapping of `data` (the batches), `random_plans` (20), `seed` (0) and
            `through` ("auto"; see `ValidationSection`). With `verify`, the first half of the samples is for
            this report, and the second half for the correction. Of several processes, those of the first
            are measured.
        targets: consumers that must be able to run the plan, such as "vllm-gaudi".
        kv_cache: "bf16" (the base format) or "fp8", on Gaudi.
        attention: "eager" (two products) or "flash" (one kernel), of optimum-habana.
        reuse_cache: if optimum-habana is run with its option of that name.
        run: cost of finding the plan: a mapping of `estimator` ("sample" or "batch") and `draws` (1), of the
            KL divergence (see `Estimate`), and `memory` ("auto", "low" or "high"; see `measure_sensitivity`).
        serving: deprecated; see `kv_cache`, `attention` and `reuse_cache`.
        out: folder of the artefacts; a second call reuses those that are still valid.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError: as the stages.
    """
    folder, model = Path(out), unwrapped(model, dispatched=True)
    timing = timing_from(timing, clock)
    name, scales = noise_from(noise, scales)
    heldout = _heldout(validation, batches)
    keys = {
        "tau": tau,
        "kl": kl,
        "gain_fraction": gain_fraction,
        "budget": budget,
        "constraint": constraint,
        "objective": objective,
        "strategy": strategy,
        "seed": seed,
        "confidence": confidence,
        "noise": name,
        "scale_method": scale_method,
        "formats": formats,
        "device": device,
        "request": request,
        "timing": timing,
        "verify": verify,
        "verify_confidence": verify_confidence,
        "validation": heldout,
        "targets": targets,
        "run": run,
        **asdict(serving_from(serving, Serving(kv_cache, attention, reuse_cache))),
    }
    recipe = recipe_of(keys, base_format(model), getattr(model, "name_or_path", "") or type(model).__name__)
    job = _job(recipe, scales, timing, heldout, allowed=allowed)
    subject = _subject(model, batches, loss_fn, folder)

    def make() -> Plan:
        if heldout is not None and batches is not None:
            heldout.check_others(subject.batches, verify=verify)
            subject.model_to_convert()  # one that cannot be copied is refused now, not after hours
        return _plan(job, subject, folder)

    return in_all_processes(job, subject, make, folder)


def _heldout(validation: Any, batches: Iterable[Any] | None) -> HeldOutBatches | None:
    """Read `validation`, which goes with calibration batches alone."""
    heldout = heldout_batches(validation)
    if heldout is not None and batches is None:
        message = "validation takes the scales of INC from calibration batches; give batches, too"
        raise InputError(message)
    return heldout


def _job(
    recipe: Recipe,
    scales: Scales | None,
    timing: TimingSettings | Mapping[str, Any] | None,
    heldout: HeldOutBatches | None,
    *,
    allowed: Collection[str] | None,
) -> Job:
    """Resolve a recipe of Python, beside what no file can hold.

    Raises:
        InputError: what it asks for cannot be priced, or cannot be had with its scales.
    """
    _check_scale_method(recipe.scale_method, recipe.targets)
    job = job_of(recipe, allowed)
    if scales is not None:
        job = _with_scales(job, scales)
    job = replace(
        job,
        noise_scales=(scales or value_scales(recipe)) if job.noise == "measured" else None,
        value_scales=(scales or value_scales(recipe)) if job.strategy in VALUE_METHODS else None,
        request=job.script_request,
        timing=timing if isinstance(timing, TimingSettings) else job.timing,
        heldout=None if heldout is None else _samples_of(recipe, heldout),
        emits=False,
        recipe={
            **job.recipe,
            "calibration": {"data": recipe.calibration.data.as_posix()},
            "scale_method": _known_by(job.targets, job.scale_method),
            "ops": None if job.allowed is None else sorted(job.allowed),
        },
    )
    check_prices(job)
    return job


def _samples_of(recipe: Recipe, batches: HeldOutBatches) -> HeldOut:
    """Name the samples that plans are measured on."""
    return replace(batches.heldout(verify=recipe.verify), through=through_of(recipe, batches.through))


def _check_scale_method(method: str | None, targets: Sequence[str]) -> None:
    """Refuse a scale method that a target does not have; without targets, one that a CPU does not have."""
    if method is not None:
        for name in targets or (CPU_QDQ.name,):
            check_scale_method(get_target(name), method)


def _with_scales(job: Job, scales: Scales) -> Job:
    """Give a job the scales of INC here; if these are of a CPU, targets on a Gaudi have their own, too.

    Raises:
        InputError: held-out losses would be measured with other scales.
    """
    if job.scale_method is not None:
        message = f"scales and scale_method {job.scale_method!r} say the same thing twice; give one"
        raise InputError(message)
    others: tuple[Scales, ...] = ()
    if scales.device == "cpu":
        if job.heldout is not None:
            check_scale_method(CPU_QDQ, scales.method)
        others = consumer_scales(job.targets, job.device, _known_by(job.targets, scales.method))[1:]
    return replace(job, consumer_scales=(scales, *others), scale_method=scales.method)


def _known_by(targets: Sequence[str], method: str | None) -> str | None:
    """Return a scale method if all targets on a Gaudi have it; else None, for the default of each."""
    on_gaudi = [target for target in map(get_target, targets) if target.device == "hpu"]
    return method if all(method in target.scale_methods for target in on_gaudi) else None


def _plan(job: Job, subject: Subject, folder: Path) -> Plan:
    with locked(folder):
        outcome = run_stages(job, subject, folder)
    for line in kept_lines(outcome.held_back, job.base):
        say(line)
    return outcome.plan


def _subject(
    model: nn.Module, batches: Iterable[Any] | None, loss_fn: LossFunction | None, folder: Path
) -> Subject:
    if batches is not None:
        return with_data_of_all_ranks(subject_in_memory(model, plain_batches(batches), loss_fn))
    return subject_measured_before(model, measured_from(folder))
