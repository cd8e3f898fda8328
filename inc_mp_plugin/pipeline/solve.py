"""Another plan in a folder that `inc-mp tune` wrote, from the stored measurements."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import PLAN_KEYS, key_of
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.stages.plan import plan_stage

if TYPE_CHECKING:
    pass


@exclusive
def solve_folder(folder: Path, overrides: list[str]) -> Plan:
    """Plan for another tau, objective, strategy ..., from the stored artefacts: plan.json.

    Raises:
        InputError: an artefact is missing or damaged, or another key is overridden.
        InfeasibleError: no plan meets the constraint.
    """
    given = list(map(key_of, overrides))
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


def _plan_before(folder: Path) -> Plan | None:
    try:
        return Run(folder).plan
    except InputError:  # none yet, or a damaged one: it is about to be written
        return None


def _files_say(plan: Plan) -> tuple[object, ...]:
    """Return the values of a plan that the files of a target say."""
    return plan.formats, plan.targets, plan.serving, plan.objective, plan.tau
