"""The paper's experiments on a folder that `inc-mp tune` wrote, part by part."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.experiments.accuracy import measured_accuracy
from inc_mp_plugin.experiments.measured import experiment_of, measured_experiment, say_time
from inc_mp_plugin.experiments.plans import Plans, trial_of
from inc_mp_plugin.experiments.settings import Settings, levels_of
from inc_mp_plugin.experiments.values import alps_samples_left, values_of_ops
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.solver.orders import PREFIX, RANDOM
from inc_mp_plugin.stages.experiment import experiment_artefact
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.plan import check_objective, plan_depends_on


@exclusive
def run_experiment(folder: Path, name: str, settings: Settings) -> Experiment:
    """Do an experiment, or read experiments/<name>-<objective>.json; a killed one goes on where it stopped.

    `choices`: what each strategy lowers at the thresholds of the plan (figure 2). `prediction`: predicted
    against measured loss MSE and KL divergence, of random plans and at several thresholds (figure 3).
    `curve`: measured loss MSE and KL divergence at equal gain (figure 4). `methods`: the same with the other
    ways to price ops, EAGL and ALPS (arXiv 2301.13330), whose values are measured first. `accuracy`: task
    scores at equal gain, over seeds that perturb the scales before quantization (figures 5, 7 to 9 and table
    1).

    Args:
        folder: of the run.
        name: one of these five.
        settings: of the experiment.

    Raises:
        InputError: an unknown name or objective, a setting out of range, or an artefact is missing, damaged
            or outdated.
    """
    if name not in _EXPERIMENTS:
        raise InputError(unknown("experiment", name, _EXPERIMENTS))
    settings.check(name)
    run = Run(folder, allow_code=settings.allow_code)
    heldout = run.recipe.validation
    settings = settings.sized(name, None if heldout is None else heldout.samples)
    if settings.quick:
        say(_quick_text(name, settings))
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
    artefact = experiment_artefact(f"{name}-{objective}")
    return artefact.make(
        folder, _depends_on(run, gains, name, settings), lambda: _EXPERIMENTS[name](run, gains, settings)
    )


def _quick_text(name: str, settings: Settings) -> str:
    """Say what a quick experiment has less of."""
    parts = [f"--draws {settings.draws}"]
    parts += [f"--points {settings.points}"] if settings.points else []
    parts += [f"--samples {settings.samples}"] if settings.samples and name != "choices" else []
    parts += [f"--limit {settings.tasks.limit}"] if name == "accuracy" else []
    parts += [f"ALPS on {settings.alps_samples} calibration samples"] if name == "methods" else []
    return f"{name}, quick: {', '.join(parts)}; intervals are wider than those of the whole experiment"


def _depends_on(run: Run, gains: Gains, name: str, settings: Settings) -> dict[str, object]:
    """Collect what an experiment follows from; of the recipe's goal, that is the thresholds alone."""
    job = Job(
        base=run.job.base,
        objective=gains.objective,
        tau=run.job.tau,
        kl=run.job.kl,
        constraint=run.yardstick,
    )
    depends_on = {**plan_depends_on(job, run.losses, {gains.objective: gains}), "draws": settings.draws}
    if name != "choices":
        depends_on |= {**run.meter.depends_on, "verify_confidence": run.meter.verify_confidence}
        depends_on |= {"points": settings.points, "samples": settings.samples}
    if name == "methods":
        depends_on |= {"alps_samples": settings.alps_samples}
    if name == "accuracy":
        depends_on |= settings.tasks.to_json()
    return depends_on


def _choices(run: Run, gains: Gains, settings: Settings) -> Experiment:
    return experiment_of(run, gains, "choices", Plans(run, gains).at_the_thresholds(settings.draws or 1))


def _prediction(run: Run, gains: Gains, settings: Settings) -> Experiment:
    plans = Plans(run, gains)
    trials = plans.within_everything(levels_of("prediction", settings.points))
    trials += plans.random_sets(settings.draws or 1)
    say_time(run, "prediction", trials)
    return measured_experiment(run, gains, "prediction", trials)


def _curve(run: Run, gains: Gains, settings: Settings) -> Experiment:
    exact, others = _at_equal_gain(Plans(run, gains), "curve", settings)
    say_time(run, "curve", [*exact, *others])
    return measured_experiment(run, gains, "curve", [*exact, *others])


def _methods(run: Run, gains: Gains, settings: Settings) -> Experiment:
    plans, samples = Plans(run, gains), settings.alps_samples or 1
    exact, others = _at_equal_gain(plans, "methods", settings)
    levels = [trial.level for trial in exact]
    left = alps_samples_left(run, samples)
    if left:
        say_time(run, "methods", [*exact, *others], more_plans=2 * len(levels), alps_samples=left)
    # Before anything may be measured through INC, which converts the model for good.
    valued = [trial for values in values_of_ops(run, samples) for trial in plans.gaining(levels, values)]
    if not left:
        say_time(run, "methods", [*exact, *valued, *others])
    return measured_experiment(run, gains, "methods", [*exact, *valued, *others])


def _at_equal_gain(plans: Plans, name: str, settings: Settings) -> tuple[list[Trial], list[Trial]]:
    """Make the plans of `ip_mse` and those of the baselines, at all gains and at that of `practice`."""
    practice = plans.practice
    levels = [*levels_of(name, settings.points), *(trial.level for trial in practice)]
    draws = list(plans.baseline_draws(settings.draws or 1))
    others = plans.baselines_gaining(levels, draws)
    return plans.gaining(levels), [*others, *practice, trial_of(plans.everything, 0, 1.0)]


def _accuracy(run: Run, gains: Gains, settings: Settings) -> Experiment:
    plans, seeds = Plans(run, gains), range(settings.draws or 1)
    levels = levels_of("accuracy", settings.points)
    whole = [*plans.gaining(levels), *plans.practice, trial_of(plans.everything, 0, 1.0)]
    trials = plans.baselines_gaining(levels, list(product((PREFIX, RANDOM), seeds)))
    trials = [*(replace(trial, seed=seed) for trial in whole for seed in seeds), *trials]
    return measured_accuracy(run, gains, trials, settings.tasks)


_EXPERIMENTS: dict[str, Callable[[Run, Gains, Settings], Experiment]] = {
    "choices": _choices,
    "prediction": _prediction,
    "curve": _curve,
    "methods": _methods,
    "accuracy": _accuracy,
}
