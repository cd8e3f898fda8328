"""Single stages done again in a folder that `inc-mp tune` wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, SelectionError, unknown
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import PLAN_KEYS, SERVING_KEYS, solve_command, written
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.stages.frontier import frontier_stage
from inc_mp_plugin.stages.plan import plan_stage
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.target import Target

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Frontier, Validation
    from inc_mp_plugin.core.timings import TimeValidation

# A recipe of which only the keys of serving count: any value of theirs is right in it.
_SERVED_ANYHOW = {
    "model": {"name_or_path": "any"},
    "calibration": {"data": "any.jsonl"},
    "tau": 1.0,
    "targets": ["optimum-habana"],
}


@exclusive
def solve_again(folder: Path, overrides: list[str]) -> Plan:
    """plan.json for another tau, objective, strategy ..., from the stored artefacts.

    Raises:
        InputError: an artefact is missing or damaged, or another key is overridden.
        InfeasibleError: no plan meets the constraint.
    """
    given = list(map(_key, overrides))
    faults = [unknown("key of solve", key, PLAN_KEYS) for key in given if key not in PLAN_KEYS]
    if faults:
        raise InputError("\n".join([*faults, "for keys of other stages run `inc-mp tune`"]))
    stored = Run(folder).recipe
    # Without the model nothing can be measured, so a plan that is solved for again is a predicted one.
    run = Run(folder, (*overrides, "verify=false"))
    before = _plan_before(folder)
    values = run.values(run.job.strategy)
    plan = plan_stage(run.job, run.losses, run.free_gains, folder, demands=run.demands, values=values)
    if before is None or _files_say(before) != _files_say(plan):
        from inc_mp_plugin.stages.files import clear_files

        clear_files(folder)
        say("The plan is a new one: run `inc-mp emit` and `inc-mp validate` for it.")
    if stored.verify:
        say("This plan is predicted; `inc-mp tune` with the same keys measures and corrects it.")
    return plan


def _key(override: str) -> str:
    return override.partition("=")[0]


def _plan_before(folder: Path) -> Plan | None:
    try:
        return Run(folder).plan
    except InputError:  # none yet, or a damaged one: it is about to be written
        return None


def _files_say(plan: Plan) -> tuple[object, ...]:
    """What of a plan the files of a target say."""
    return plan.formats, plan.targets, plan.serving, plan.objective, plan.tau


@exclusive
def validate_again(folder: Path) -> Validation:
    """validation.json of the plan in a folder.

    Raises:
        InputError: an artefact is missing or damaged, or of another model or other data.
    """
    from inc_mp_plugin.stages.validation import validation_stage

    run = Run(folder)
    return validation_stage(run.meter, run.planned_losses, run.plan, folder)


@exclusive
def validate_time_again(folder: Path, taus: Sequence[float]) -> TimeValidation:
    """time_validation.json: plans at these thresholds, or at half, once and twice the plan's.

    Raises:
        InputError: an artefact is missing or damaged, of another model or other data, or no time was
            measured.
    """
    from inc_mp_plugin.stages.time_validation import time_validation_stage

    for tau in taus:
        check_knobs(tau, None)
    run = Run(folder)
    subject = run.subject
    chosen = taus or [run.plan.tau / 2, run.plan.tau, run.plan.tau * 2]
    return time_validation_stage(
        run.job, subject, run.graph, run.losses, gains=run.gains, taus=chosen, out=folder
    )


@exclusive
def emit_again(folder: Path, target: str, overrides: list[str]) -> Path:
    """configs/<target>.json of the plan in a folder, and what belongs to it.

    Args:
        folder: of the run.
        target: the consumer.
        overrides: how the model will be served, where that is to be sure: `attention=flash`.

    Raises:
        InputError: an unknown target or key, an artefact that is missing or damaged, or the plan was made
            for another way of serving.
        SelectionError: the consumer cannot run the plan, or INC would select other ops than the plan's.
    """
    from inc_mp_plugin.stages.files import title_of, write_files

    given = list(map(_key, overrides))
    faults = [unknown("key of emit", key, SERVING_KEYS) for key in given if key not in SERVING_KEYS]
    if faults:
        raise InputError("\n".join(faults))
    get_target(target)
    run = Run(folder)
    plan, targets = run.plan, tuple(dict.fromkeys([*run.plan.targets, target]))
    served = _served(run, target, targets, overrides) if given else plan.serving
    try:
        plan = replace(plan, serving=served)
        return write_files(run.job, plan, run.graph, target, title=title_of(plan), out=folder)
    except SelectionError as error:
        if target in plan.targets:
            raise
        command = solve_command(folder, run.solved_again(targets=targets))
        message = f"{error}; solve with {target} among the targets, then emit again: {command}"
        raise SelectionError(message) from None


def _served(run: Run, target: str, targets: Sequence[str], overrides: list[str]) -> Serving:
    """How the model will be served, if that is no other way than the plan's for this target."""
    asked, planned = parse_recipe(dict(_SERVED_ANYHOW), overrides, "emit"), run.plan.serving
    wanted = replace(planned, **{key: getattr(asked, key) for key in map(_key, overrides)})
    if runs_alike(get_target(target), Captured.of(run.graph), planned, wanted):
        return wanted
    old, new = asdict(planned), asdict(wanted)
    others = [key for key in new if new[key] != old[key]]
    was, will = (" ".join(written(key, one[key]) for key in others) for one in (old, new))
    command = solve_command(run.folder, run.solved_again(targets=targets, **new))
    message = (
        f"no {target} file was made: the plan is for {was}, not {will}, where {target} runs the model in "
        f"another way; solve for that, then emit again: {command}"
    )
    raise InputError(message)


def runs_alike(consumer: Target, captured: Captured, one: Serving, other: Serving) -> bool:
    """Whether a consumer runs a model in the same modules, by the same rules, served in these two ways."""
    layout = consumer.lay_out(captured, one)
    if layout.caches and one.kv_cache != other.kv_cache:
        return False
    return layout == consumer.lay_out(captured, other)


@exclusive
def frontier_again(folder: Path, points: int, draws: int) -> dict[str, Frontier]:
    """Draw gain against loss for every objective that has gains; see `frontier_stage`.

    Raises:
        InputError: an artefact is missing or damaged, or there are too few points.
    """
    run = Run(folder)
    return frontier_stage(folder, run.losses, run.gains, run.demands, points=points, draws=draws)
