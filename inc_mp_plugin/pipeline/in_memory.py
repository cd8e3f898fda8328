"""Planning a model that is in memory, in a folder that all commands accept."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from inc_mp_plugin.core.demands import Serving, kept_lines
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.formats import check_formats
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.literals import IN_MEMORY, Accelerator, NoiseModel, Objective, Strategy
from inc_mp_plugin.core.plan import VALUE_METHODS
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.subject import subject_in_memory, subject_measured_before, with_data_of_all_ranks
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.pipeline.deprecated import noise_from, timing_from
from inc_mp_plugin.pipeline.sections import TimingSection
from inc_mp_plugin.pipeline.tune import in_all_processes, run_stages
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.scales.scaleless import ON_A_CPU
from inc_mp_plugin.solver.uncertainty import check_confidence
from inc_mp_plugin.stages.consumer_scales import consumer_scales
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.sensitivity import measured_from

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from torch import nn

    from inc_mp_plugin.core.plan import Plan
    from inc_mp_plugin.core.request import Request
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.deprecated import Clock, Noise
    from inc_mp_plugin.scales.methods import Scales

Json = dict[str, Any]


def tune(
    model: nn.Module,
    batches: Iterable[Any] | None,
    *,
    tau: float | None = None,
    gain_fraction: float | None = None,
    budget: float | None = None,
    objective: Objective = "memory",
    strategy: Strategy = "ip_mse",
    seed: int = 0,
    confidence: float | None = None,
    noise: NoiseModel | Noise | None = None,
    scales: Scales | None = None,
    formats: Sequence[str] = ("fp8_e4m3",),
    device: Accelerator = "gaudi2",
    request: Request | None = None,
    timing: TimingSettings | None = None,
    clock: Clock | None = None,
    loss_fn: LossFunction | None = None,
    allowed: Collection[str] | None = None,
    targets: Sequence[str] = (),
    serving: Serving | None = None,
    out: str | Path,
) -> Plan:
    """Plan a model that is in memory: capture, sensitivities, gains, program.

    Args:
        model: in its base format; it leaves as it came.
        batches: calibration batches, the first of which also serves to capture the graph. With None, the
            sensitivities are those that another process measured of this model in `out`. Of several
            processes of torch.distributed each gives its own batches; the plan is the same in all.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        gain_fraction: instead, the least gain, as a fraction of the largest; the plan has the least loss.
        budget: instead, the most cost, as a fraction of what everything costs in the base format.
        objective: "memory", "theoretical_time", "bit_operations", "roofline" or "empirical_time".
        strategy: "ip_mse"; "eagl" or "alps", which price ops in other ways; or a baseline: "random" (of
            `seed`), "prefix" or "uniform".
        seed: seed of the order of "random".
        confidence: level of the interval whose upper end is within the loss budget, such as 0.95.
        noise: "uniform" as in the paper (eq. 16 to 18; if None), "log_uniform" (see `core.formats.alpha`),
            or "measured" under `scales`.
        scales: scales to FP8 that INC will use. Ops that have no scale there stay in the base format;
            measured noise, "eagl" and "alps" round with these scales. If None, the default scales of a CPU
            and of the targets.
        formats: formats below the base format.
        device: accelerator that time is modelled for.
        request: request that time is priced for; if None, the forward pass of the first batch is measured.
        timing: where and how long time is measured; if None, on the CPU for "empirical_time", and else not.
        clock: deprecated; see `timing`.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
        allowed: names of the ops that may leave the base format; all if None.
        targets: consumers that must be able to run the plan, such as "vllm-gaudi".
        serving: settings of the consumers that serve the model; the defaults if None.
        out: folder of the artefacts; a second call reuses those that are still valid.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError: as the stages.
    """
    folder = Path(out)
    subject = _subject(unwrapped(model), batches, loss_fn, folder)
    timing = timing_from(timing, clock) or (TimingSettings() if objective == "empirical_time" else None)
    name, noise_scales = noise_from(noise, scales)
    job = Job(
        base=subject.base,
        formats=tuple(formats),
        objective=objective,
        tau=tau,
        gain_fraction=gain_fraction,
        budget=budget,
        strategy=strategy,
        seed=seed,
        confidence=confidence,
        noise=name,
        noise_scales=(noise_scales or ON_A_CPU) if name == "measured" else None,
        value_scales=scales or ON_A_CPU,
        consumer_scales=(scales,) if scales else consumer_scales(targets, device),
        device=device,
        request=request,
        timing=timing,
        targets=tuple(targets),
        serving=serving or Serving(),
        allowed=None if allowed is None else frozenset(allowed),
        emits=False,
    )
    _check(job)
    job = replace(job, recipe=_recipe_of(job, subject))
    return in_all_processes(job, subject, lambda: _plan(job, subject, folder), folder)


def _plan(job: Job, subject: Subject, folder: Path) -> Plan:
    with locked(folder):
        outcome = run_stages(job, subject, folder)
    for line in kept_lines(outcome.held_back, job.base):
        say(line)
    return outcome.plan


def _check(job: Job) -> None:
    """Refuse settings that no plan can be made for, before anything is measured."""
    for key, words in (
        ("strategy", Strategy),
        ("objective", Objective),
        ("noise", NoiseModel),
        ("device", Accelerator),
    ):
        if getattr(job, key) not in get_args(words):
            raise InputError(unknown(key, getattr(job, key), get_args(words)))
    check_knobs(job.tau, job.gain_fraction, job.budget)
    check_formats(job.all_formats)
    if job.confidence is not None:
        check_confidence(job.confidence)


def _subject(
    model: nn.Module, batches: Iterable[Any] | None, loss_fn: LossFunction | None, folder: Path
) -> Subject:
    if batches is not None:
        return with_data_of_all_ranks(subject_in_memory(model, plain_batches(batches), loss_fn))
    return subject_measured_before(model, measured_from(folder))


def _recipe_of(job: Job, subject: Subject) -> Json:
    """Write the recipe of a job whose model and samples were in memory.

    `ops` are the names of the ops that may leave the base format; None for all.
    """
    own = job.consumer_scales[0] if len(job.consumer_scales) == 1 else None
    scales = job.noise_scales or own or (job.value_scales if job.strategy in VALUE_METHODS else None)
    model = subject.model
    content = {
        **job.goal,
        **asdict(job.serving),
        "model": {
            "name_or_path": getattr(model, "name_or_path", "") or type(model).__name__,
            "dtype": job.base,
            "weights": IN_MEMORY,
        },
        "calibration": {"data": "in memory"},
        "device": job.device,
        "formats": list(job.formats),
        "noise": job.noise,
        "scale_method": None if scales is None else scales.method,
        "targets": list(job.targets),
        "request": None if job.request is None else asdict(job.request),
        "timing": None if job.timing is None else _timing(job.timing),
        "ops": None if job.allowed is None else sorted(job.allowed),
    }
    if job.strategy in VALUE_METHODS:
        content["confidence"] = None  # only ip_mse has one
    return content


def _timing(settings: TimingSettings) -> Json:
    return {key: value for key, value in asdict(settings).items() if key in TimingSection.model_fields}
