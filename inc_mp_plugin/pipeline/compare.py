"""Two folders beside each other: what changed between their plans, and why, without the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.knobs import KNOBS
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.pipeline.explain import explained
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.plan_changes import both_plans, moved_ops
from inc_mp_plugin.runtime.reuse import changes
from inc_mp_plugin.runtime.store import Json
from inc_mp_plugin.stages.gains import GAINS
from inc_mp_plugin.stages.plan import PLAN, make_plan
from inc_mp_plugin.stages.sensitivity import HASH

_MEASURED = ("sensitivity", "gains")  # a plan's hashes of what it was made from


def compare_folders(first: Path, second: Path) -> list[Table | str]:
    """Compare two plans: key figures, what they were made from, and the ops that moved.

    Raises:
        InputError: an artefact is missing or damaged, or the plans have no op in common.
    """
    runs = Run(first), Run(second)
    if set(runs[0].plan.formats).isdisjoint(runs[1].plan.formats):
        message = f"the plans of {first} and {second} have no op in common: they are of different models"
        raise InputError(message)
    names = (str(first), str(second))
    cases = [explained(run) for run in runs]
    reasons = [*_reasons(first, second), *_by_threshold(*runs)]
    figures, moved = both_plans(cases[0], cases[1], names), moved_ops(cases[0], cases[1], names)
    return [figures, *(reasons or ["Both were made from the same."]), *moved]


def _reasons(first: Path, second: Path) -> Iterator[str]:
    """Say, artefact by artefact, what else they were made from."""
    plans = [PLAN.made_from(folder) for folder in (first, second)]
    if made_by := changes(*({"made_by": plan["made_by"]} for plan in plans)):
        yield f"Version: {made_by}."
    for title, artefact in (("Sensitivities", HASH), ("Gains", GAINS), ("Plan", PLAN)):
        before, after = (_without_version(artefact.made_from(folder)) for folder in (first, second))
        if text := changes(before, after):
            yield f"{title}: {text}."


def _without_version(depends_on: Json) -> Json:
    return {key: value for key, value in depends_on.items() if key != "made_by"}


def _by_threshold(first: Run, second: Run) -> Iterator[str]:
    """Tell the ops that moved by the threshold from those that moved by the measurements, if both changed.

    The second plan is made again with the thresholds of the first.
    """
    before, after = PLAN.made_from(first.folder), PLAN.made_from(second.folder)
    if all(before.get(key) == after.get(key) for key in KNOBS) or all(
        before.get(key) == after.get(key) for key in _MEASURED
    ):
        return
    planned = second.as_planned
    knobs: Json = {key: before.get(key) for key in KNOBS}
    job = replace(planned.job, **knobs)
    gains, values = second.free_gains[job.objective], planned.values(job.strategy)
    try:
        between = make_plan(job, gains, planned.losses, demands=planned.demands, values=values)
    except (InfeasibleError, InputError) as error:
        yield f"With the threshold of {first.folder}, {second.folder} has no plan: {error}."
        return
    yield (
        f"With the threshold of {first.folder}, {_moved(first.plan, between)} ops would have moved by the "
        f"measurements; the threshold moves {_moved(between, second.plan)}."
    )


def _moved(before: Plan, after: Plan) -> int:
    old, new = before.lowered, after.lowered
    return sum(old.get(op) != new.get(op) for op in before.formats if op in after.formats)
