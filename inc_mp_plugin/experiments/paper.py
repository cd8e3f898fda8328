"""The paper's experiments on a folder that `inc-mp tune` wrote: the plans, and the measurement of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.errors import InfeasibleError, InputError, unknown
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import VALUE_METHODS, Plan
from inc_mp_plugin.core.results import Experiment, Trial
from inc_mp_plugin.evaluate.interval import mean_ratio_interval
from inc_mp_plugin.evaluate.validate import KLMeasurement
from inc_mp_plugin.experiments.accuracy import Examiner, Tasks
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.resolve import value_scales
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.solver.baselines import baseline, baseline_gaining
from inc_mp_plugin.solver.orders import BASELINES, BY_LAYERS, ENDS, PRACTICE, PREFIX, RANDOM, UNIFORM
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.uncertainty import predict
from inc_mp_plugin.stages.experiment import experiment_artefact
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.op_values import values_stage
from inc_mp_plugin.stages.plan import check_objective, plan_depends_on

# Fractions of the largest gain at which strategies are compared, and of everything's NRMSE.
GAIN_LEVELS = (0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
NRMSE_LEVELS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)
ACCURACY_LEVELS = (0.3, 0.6, 0.9)
_LEVELS = {
    "prediction": NRMSE_LEVELS,
    "curve": GAIN_LEVELS,
    "methods": GAIN_LEVELS,
    "accuracy": ACCURACY_LEVELS,
}


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of an experiment.

    `objective` is the plan's if None; `draws` counts the random draws, or the seeds of perturbed scales;
    `tasks` are those of `accuracy`. Fewer `points`, the gains or thresholds to compare at, and fewer held-out
    `samples` make the experiment shorter. None stands for all points of the experiment, and for all samples
    of the recipe. `allow_code` lets the file of the recipe's own loss run.
    """

    objective: str | None = None
    draws: int = 10
    tasks: Tasks = Tasks(())
    points: int | None = None
    samples: int | None = None
    allow_code: bool = False


@exclusive
def run_experiment(folder: Path, name: str, settings: Settings) -> Experiment:
    """Do an experiment, or read experiments/<name>-<objective>.json.

    `choices`: what each strategy lowers at the recipe's tau (figure 2). `prediction`: predicted against
    measured loss MSE at several thresholds (figure 3). `curve`: measured loss MSE at equal gain (figure
    4). `methods`: the same of the ways to price ops: ip_mse, EAGL and ALPS (arXiv 2301.13330), whose
    values are measured first. `accuracy`: task scores at several thresholds, over seeds that perturb the
    scales before quantization (figures 5, 7 to 9 and table 1).

    Args:
        folder: of the run.
        name: one of these five.
        settings: of the experiment.

    Raises:
        InputError: an unknown name or objective, a setting out of range, or an artefact is missing, damaged
            or outdated.
    """
    _check(name, settings)
    run = Run(folder, allow_code=settings.allow_code)
    if settings.samples is not None:
        # The losses that were measured on all samples stay in the folder itself.
        losses_folder = folder / "experiments" / f"on-{settings.samples}-samples"
        fewer = (f"validation.samples={settings.samples}", "verify=false")
        run = Run(folder, fewer, losses_folder, settings.allow_code)
    objective = settings.objective or run.plan.objective
    check_objective(run.gains, objective)
    gains = run.gains[objective]
    if gains.largest <= 0:
        message = f"no configuration gains anything for {objective}; give another objective"
        raise InputError(message)
    # Of the recipe's goal, an experiment takes the threshold alone.
    job = Job(base=run.job.base, objective=gains.objective, tau=run.job.tau)
    depends_on = {**plan_depends_on(job, run.losses, {objective: gains}), "draws": settings.draws}
    if name != "choices":
        depends_on |= {**run.meter.depends_on, "verify_confidence": run.meter.verify_confidence}
        depends_on |= {"points": settings.points, "samples": settings.samples}
    if name == "accuracy":
        depends_on |= settings.tasks.to_json()
    artefact = experiment_artefact(f"{name}-{objective}")
    return artefact.make(folder, depends_on, lambda: _EXPERIMENTS[name](run, gains, settings))


def _check(name: str, settings: Settings) -> None:
    if name not in _EXPERIMENTS:
        raise InputError(unknown("experiment", name, _EXPERIMENTS))
    most = len(_LEVELS.get(name, GAIN_LEVELS))
    for key in ("draws", "points", "samples"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            message = f"{key} is {value}; give at least 1"
            raise InputError(message)
    if settings.points is not None and settings.points > most:
        message = f"points is {settings.points}; give at most {most} for {name}"
        raise InputError(message)


def levels_of(name: str, points: int | None) -> tuple[float, ...]:
    """Return the levels to compare at: all of an experiment, or so many from the middles of equal parts.

    Example:
        >>> levels_of("curve", 3), levels_of("accuracy", None)
        ((0.35, 0.65, 0.9), (0.3, 0.6, 0.9))
    """
    levels = _LEVELS[name]
    if points is None:
        return levels
    return tuple(levels[(2 * index + 1) * len(levels) // (2 * points)] for index in range(points))


_NO_LOSS = "experiments compare losses, and the loss was not priced; run `inc-mp tune` with tau"


def _choices(run: Run, gains: Gains, settings: Settings) -> Experiment:
    tau = run.recipe.tau or run.plan.tau
    if tau is None:
        message = "choices are compared at a tau, and the loss was not priced; run `inc-mp tune` with tau"
        raise InputError(message)
    trials = [_trial(solve(gains, run.losses, tau), 0, tau)]
    for strategy in (*BASELINES, *(BY_LAYERS if _has_layers(run) else ())):
        for seed in range(3 if strategy == RANDOM else 1):
            make = partial(baseline, gains, run.losses, strategy, tau, seed=seed, graph=run.graph)
            trials += _if_priced(make, seed, tau)
    return _experiment(run, gains, "choices", trials)


def _prediction(run: Run, gains: Gains, settings: Settings) -> Experiment:
    everything = baseline(gains, run.losses, UNIFORM, 1.0)
    levels = levels_of("prediction", settings.points)
    plans = [(solve(gains, run.losses, level * _nrmse(everything)), level) for level in levels]
    trials = [_trial(plan, 0, level) for plan, level in [*plans, (everything, 1.0)]]
    return _measured(run, gains, "prediction", trials)


def _curve(run: Run, gains: Gains, settings: Settings) -> Experiment:
    trials, practice = [], _practice(run, gains)
    for level in (*levels_of("curve", settings.points), *(trial.level for trial in practice)):
        trials.append(_trial(solve(gains, run.losses, gain_fraction=level), 0, level))
        for strategy, seed in _baseline_draws(run, settings.draws):
            gain = level * gains.largest
            make = partial(baseline_gaining, gains, run.losses, strategy, gain, seed=seed, graph=run.graph)
            trials += _if_priced(make, seed, level)
    everything = _trial(baseline(gains, run.losses, UNIFORM, 1.0), 0, 1.0)
    return _measured(run, gains, "curve", [*trials, *practice, everything])


def _methods(run: Run, gains: Gains, settings: Settings) -> Experiment:
    job = replace(run.job, value_scales=value_scales(run.recipe))
    # Before anything may be measured through INC, which converts the model for good.
    values = [values_stage(job, run.subject, run.graph, run.folder, method=name) for name in VALUE_METHODS]
    trials = []
    for level in levels_of("methods", settings.points):
        for values_of_ops in (None, *values):
            make = partial(solve, gains, run.losses, gain_fraction=level, values=values_of_ops)
            trials += _if_priced(make, 0, level)
    return _measured(run, gains, "methods", trials)


def _accuracy(run: Run, gains: Gains, settings: Settings) -> Experiment:
    everything = baseline(gains, run.losses, UNIFORM, 1.0)
    trials = []
    for level in levels_of("accuracy", settings.points):
        tau = level * _nrmse(everything)
        for seed in range(settings.draws):
            trials.append(_trial(solve(gains, run.losses, tau), seed, level))
            for strategy in (PREFIX, RANDOM, *((ENDS,) if _has_layers(run) else ())):
                make = partial(baseline, gains, run.losses, strategy, tau, seed=seed, graph=run.graph)
                trials += _if_priced(make, seed, level)
    trials += [_trial(everything, seed, 1.0) for seed in range(settings.draws)]
    trials += [replace(trial, seed=seed) for trial in _practice(run, gains) for seed in range(settings.draws)]
    examiner = Examiner(run, settings.tasks)
    experiment = _measured(run, gains, "accuracy", trials)
    shorter = "fewer --points or --draws, or --limit, take less"
    with tracked(experiment.trials, "Accuracy", noun="plan", shorter=shorter) as plans:
        scored = [replace(trial, scores=examiner.scores(trial.quantized, trial.seed)) for trial in plans]
    return replace(experiment, trials=tuple(scored), base_scores=examiner.scores((), None))


_EXPERIMENTS: dict[str, Callable[[Run, Gains, Settings], Experiment]] = {
    "choices": _choices,
    "prediction": _prediction,
    "curve": _curve,
    "methods": _methods,
    "accuracy": _accuracy,
}


def _has_layers(run: Run) -> bool:
    """Tell if there are layers, of which baselines keep the first and the last."""
    return bool(repeated_blocks(run.graph))


def _practice(run: Run, gains: Gains) -> list[Trial]:
    """Make the trial of all linear ops but the head, at its own gain; none without a known gain above 0.

    Its level is the next number below its share of the largest gain, so that other plans of exactly this gain
    have enough, too.
    """
    if not _has_layers(run):
        return []
    made = _if_priced(partial(baseline, gains, run.losses, PRACTICE, 1.0, graph=run.graph), 0, 1.0)
    shares = [(trial, trial.gain / gains.largest) for trial in made]
    return [replace(trial, level=math.nextafter(share, 0.0)) for trial, share in shares if share > 0]


def _baseline_draws(run: Run, draws: int) -> Iterator[tuple[str, int]]:
    yield PREFIX, 0
    if _has_layers(run):
        yield ENDS, 0
    yield from ((RANDOM, seed) for seed in range(draws))


def _if_priced(make: Callable[[], Plan], seed: int, level: float) -> list[Trial]:
    """Make a plan's trial; none where a strategy never gains as much, or its gain was not measured."""
    try:
        return [_trial(make(), seed, level)]
    except (InputError, InfeasibleError) as error:
        say(f"left out: {error}")
        return []


def _trial(plan: Plan, seed: int, level: float) -> Trial:
    value, interval = plan.loss_mse, plan.interval
    if value is None or interval is None:
        raise InputError(_NO_LOSS)
    return Trial(plan.strategy, seed, level, plan.gain, plan.quantized, value, interval)


def _nrmse(plan: Plan) -> float:
    if plan.nrmse is None:
        raise InputError(_NO_LOSS)
    return plan.nrmse


def _measured(run: Run, gains: Gains, name: str, trials: Sequence[Trial]) -> Experiment:
    """Measure the loss MSE of every trial, all together; equal plans are measured once."""
    fewer = "--points, --draws or --samples" if name == "curve" else "--points or --samples"
    run.meter.measure([trial.quantized for trial in trials], "Measured plans", f"fewer {fewer} take less")
    measured = [_measured_trial(run, trial) for trial in trials]
    return _experiment(run, gains, name, measured)


def _measured_trial(run: Run, trial: Trial) -> Trial:
    """Return a trial with its measured loss MSE and KL, and its prediction's interval for as many samples."""
    meter, losses = run.meter, run.losses.measured_loss
    changes = (meter.losses(trial.quantized) - meter.losses(())) ** 2
    formats = dict.fromkeys(trial.quantized, meter.format)
    base = run.recipe.model.dtype
    _, interval = predict(losses, formats, base, measured=len(changes))
    of_kl = run.losses.kl
    kl = KLMeasurement(
        meter.divergence,
        lambda ops: None if of_kl is None else predict(of_kl, formats, base, measured=len(changes)),
    )
    return replace(
        trial,
        interval=interval or trial.interval,
        measured=float(changes.mean()),
        measured_interval=mean_ratio_interval(changes, np.ones_like(changes), meter.verify_confidence),
        kl=kl.point(trial.quantized, meter.verify_confidence),
    )


def _experiment(run: Run, gains: Gains, name: str, trials: Sequence[Trial]) -> Experiment:
    losses = run.losses.sensitivity.loss if name == "choices" else run.meter.losses(())
    return Experiment(
        name=name,
        objective=gains.objective,
        unit=gains.unit,
        source=gains.source,
        largest_gain=gains.largest,
        samples=len(losses),
        loss_ms=float((losses**2).mean()),
        ops=run.losses.ops,
        trials=tuple(trials),
    )
