"""The stages in order, each reused while it is valid: no arithmetic of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.pipeline.data import check_data, subject_of, subject_without_weights
from inc_mp_plugin.pipeline.next_command import DRY_RUN, mark_dry_run, refuse_in_memory
from inc_mp_plugin.pipeline.resolve import job_of, timing_of
from inc_mp_plugin.runtime import ranks, store
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import plan_together
from inc_mp_plugin.solver.planner import IP_MSE
from inc_mp_plugin.stages.consumer_scales import held_back_for, with_scales
from inc_mp_plugin.stages.files import clear_files, counted, title_of, write_files
from inc_mp_plugin.stages.gains import check_prices, gains_stage
from inc_mp_plugin.stages.graph import graph_stage
from inc_mp_plugin.stages.loss_meter import LossMeter
from inc_mp_plugin.stages.op_values import tasks, values_stage
from inc_mp_plugin.stages.plan import check_objective, make_plan, plan_depends_on, plan_stage
from inc_mp_plugin.stages.sensitivity import KIND, measure, no_losses, sensitivity_stage
from inc_mp_plugin.stages.validation import validation_stage
from inc_mp_plugin.stages.verification import verification_stage
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.rules import check_adapters

if TYPE_CHECKING:
    from inc_mp_plugin.core.demands import Demands
    from inc_mp_plugin.core.gains import Gains
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.stages.job import Job


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of the stages.

    `held_back` are the ops that INC has no scale for, with the reason; `gains` are of the job's objective.
    """

    graph: Graph
    held_back: Mapping[str, str]
    demands: Demands
    gains: Gains
    plan: Plan


def tune_recipe(recipe: Recipe, out: Path, *, allow_code: bool = False) -> Plan:
    """Run every stage of a recipe in a folder; artefacts that are still valid are reused.

    Of several processes the first does everything, and all share the samples of the sensitivities.

    Args:
        recipe: the checked recipe.
        out: folder of the artefacts.
        allow_code: run the file of the recipe's own loss.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError, SelectionError: as the stages.
    """
    if recipe.run.parallel == "fsdp" and ranks.size() == 1:
        message = (
            "run: {parallel: fsdp} spreads the model over processes, and there is one; start several: "
            "torchrun --nproc-per-node=2 --no-python inc-mp tune RECIPE.yaml, or give run.parallel=samples"
        )
        raise InputError(message)
    subject = subject_of(recipe, allow_code=allow_code)
    # Missing samples or a missing device are reported now, not after hours of measuring.
    check_data(recipe)
    timing = timing_of(recipe)
    if timing is not None:
        get_device(timing.device)
    job = job_of(recipe)
    check_prices(job)

    @locked(out)
    def make() -> Plan:
        refuse_in_memory(out)
        _write_recipe(job, recipe.calibration.samples, out)
        return run_stages(job, subject, out).plan

    return in_all_processes(job, subject, make, out)


def dry_run(recipe: Recipe, out: Path) -> Outcome:
    """Run the stages of a recipe that need neither weights nor samples; the plan has the largest gain.

    Args:
        recipe: as for `tune_recipe`.
        out: folder of the artefacts; dry-run.json marks it.

    Raises:
        InputError: the model's configuration cannot be loaded, the objective cannot be priced, or the folder
            holds a plan of `tune_recipe`.
        SelectionError: INC would select other modules than the plan's.
    """
    objective = "roofline" if recipe.objective == "empirical_time" else recipe.objective
    subject, job = subject_without_weights(recipe), job_of(recipe)
    mark_dry_run(out, job.recipe)
    job = replace(job, objective=objective, strategy=IP_MSE, timing=None)
    job = replace(job, tau=1.0, kl=None, gain_fraction=None, budget=None, constraint=None, confidence=None)
    return run_stages(job, subject, out)


def in_all_processes(job: Job, subject: Subject, make: Callable[[], Plan], out: Path) -> Plan:
    """Make a plan in the first of several processes; the others measure their share of the samples.

    Args:
        job: the aim of the plan.
        subject: the model, in every process.
        make: makes the plan.
        out: folder of the artefacts.
    """
    return plan_together(
        make, {KIND: lambda graph: measure(job, subject, graph, out), **tasks(job, subject, out)}
    )


def run_stages(job: Job, subject: Subject, out: Path) -> Outcome:
    """Run the stages of a job in a folder; without weights, losses are 0, and no plan is written.

    Args:
        job: the aim of the plan.
        subject: the model and its samples.
        out: folder of the artefacts.
    """
    graph = graph_stage(subject, out)
    runnable = job.runnable(graph)
    job.demands(graph)  # refuses what no consumer can run, before anything is measured
    if job.emits:
        check_adapters(graph.modules, job.targets)
    if subject.has_weights:
        measured, noise = sensitivity_stage(job, subject, graph, out), job.noise
        if job.recipe["calibration"].get("samples") != measured.samples:  # of batches in memory
            _write_recipe(job, measured.samples, out)
    else:
        measured, noise = no_losses(runnable), "uniform"
    held_back = held_back_for(job, measured)
    sensitivity, demands = with_scales(measured.of(runnable), held_back), job.demands(graph, held_back)
    gains = gains_stage(job, subject, graph, sensitivity, demands=demands, out=out)
    check_objective(gains, job.objective)
    losses = Costs(sensitivity, noise, demands.cached)
    if subject.has_weights:
        plan = _plan(job, subject, graph, losses, gains=gains, demands=demands, out=out)
    else:
        plan = make_plan(job, gains[job.objective], losses, demands=demands)
        line = f"largest gain, whatever its loss: {counted(plan.base, plan.formats)}"
        _write_files(job, plan, graph, f"{line}, objective {plan.objective}", out=out)
    return Outcome(graph, held_back, demands, gains[job.objective], plan)


def _plan(
    job: Job,
    subject: Subject,
    graph: Graph,
    losses: Costs,
    *,
    gains: Mapping[str, Gains],
    demands: Demands,
    out: Path,
) -> Plan:
    """Make the plan, corrected by measurement if the job says so, and write the files of the plan."""
    values = values_stage(job, subject, graph, out)
    meter, correction = None, 1.0
    if job.heldout is not None:
        meter = LossMeter(job, job.heldout, subject, graph, ops=losses.ops, out=out)
    if job.verify and meter is not None:
        correction = _verified_correction(job, meter, gains, losses, demands=demands, out=out)
    plan = plan_stage(job, losses, gains, out, correction=correction, demands=demands, values=values)
    if job.emits:
        _write_files(job, plan, graph, title_of(plan), out=out)
    if meter is not None:
        validation_stage(meter, losses, plan, out)
    return plan


def _verified_correction(
    job: Job, meter: LossMeter, gains: Mapping[str, Gains], losses: Costs, *, demands: Demands, out: Path
) -> float:
    """Return the largest correction of the loss budget with a measured loss surely within tau."""
    loop = verification_stage(
        meter.on_other_samples(),
        lambda factor: make_plan(job, gains[job.objective], losses, factor, demands=demands),
        plan_depends_on(job, losses, gains, demands=demands),
        out,
    )
    measured = sum(tested.ops > 0 for tested in loop.rounds)
    say(
        f"verify: {measured} plans measured, the budgets are corrected by {loop.correction:.4g}; the "
        "plan is reported on other samples"
    )
    return loop.correction


def _write_recipe(job: Job, samples: int, out: Path) -> None:
    """Write recipe.json; the number of samples in memory is known after the sensitivities only."""
    calibration = {**job.recipe["calibration"], "samples": samples}
    store.write_artefact(out / "recipe.json", "recipe", {**job.recipe, "calibration": calibration})
    (out / DRY_RUN).unlink(missing_ok=True)


def _write_files(job: Job, plan: Plan, graph: Graph, title: str, *, out: Path) -> None:
    """Write the files of every target, and remove those of a former plan."""
    clear_files(out, job.targets)
    for target in job.targets:
        if get_target(target).device is None:
            say(f"{target} reads a checkpoint of the plan: inc-mp export {out} --out MODEL")
        else:
            write_files(job, plan, graph, target, title=title, out=out)
