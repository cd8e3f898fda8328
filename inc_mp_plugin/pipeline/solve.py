"""Other plans from the measurements in a folder: one for another aim, or all along the frontier."""

from __future__ import annotations

from pathlib import Path

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.frontier import Frontier
from inc_mp_plugin.core.literals import IN_MEMORY
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import PLAN_KEYS, key_of
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.stages.frontier import frontier_stage
from inc_mp_plugin.stages.plan import plan_stage


@exclusive
def solve_folder(folder: Path, overrides: list[str]) -> Plan:
    """Write plan.json anew from the stored artefacts, for another threshold, objective, strategy and so on.

    Raises:
        InputError: an artefact is missing or damaged, or another key is overridden.
        InfeasibleError: no plan meets the constraint.
    """
    keys = map(key_of, overrides)
    faults = [unknown("key of solve", key, PLAN_KEYS) for key in keys if key not in PLAN_KEYS]
    if faults:
        raise InputError("\n".join([*faults, "to change other keys, run `inc-mp tune`"]))
    stored = Run(folder).recipe
    # Without the model nothing can be measured, so the new plan is a predicted one.
    run = Run(folder, (*overrides, "verify=false"))
    before = _plan_before(folder)
    values = run.values(run.job.strategy)
    plan = plan_stage(run.job, run.losses, run.free_gains, folder, demands=run.demands, values=values)
    if before is None or _files_say(before) != _files_say(plan):
        from inc_mp_plugin.stages.files import clear_files

        clear_files(folder)
        say("The plan is a new one: run `inc-mp emit` and `inc-mp validate` for it.")
    if stored.verify:
        tune = "mp.tune" if stored.model.weights == IN_MEMORY else "inc-mp tune"
        say(f"This plan is predicted; `{tune}` with the same keys measures and corrects it.")
    return plan


@exclusive
def draw_frontier(folder: Path, points: int, draws: int) -> dict[str, Frontier]:
    """Draw gain against loss, or KL, for every objective that has gains; see `frontier_stage`.

    The curves are of the plan's targets, noise and yardstick.

    Args:
        folder: folder of the run.
        points: number of points of the exact curve.
        draws: number of draws of the random baseline.

    Raises:
        InputError: an artefact is missing or damaged, or there are too few points.
    """
    run = Run(folder).as_planned
    return frontier_stage(
        folder,
        run.losses,
        run.gains,
        run.demands,
        yardstick=run.yardstick,
        points=points,
        draws=draws,
        graph=run.graph,
    )


def _plan_before(folder: Path) -> Plan | None:
    try:
        return Run(folder).plan
    except InputError:  # none yet, or a damaged one: it is about to be written
        return None


def _files_say(plan: Plan) -> tuple[object, ...]:
    """Return the values of a plan that the files of a target hold."""
    return plan.formats, plan.targets, plan.serving, plan.objective, plan.tau
