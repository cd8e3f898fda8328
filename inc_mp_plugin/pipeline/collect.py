"""From a folder that `inc-mp tune` wrote to its report: whatever artefacts are there and still valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.results import Experiment, Stability
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.document import report_info
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.write import write_pages
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.store import Json
from inc_mp_plugin.solver.stability import stability
from inc_mp_plugin.solver.ties import constrained
from inc_mp_plugin.stages.experiment import experiment_artefact
from inc_mp_plugin.stages.frontier import FRONTIER, files_read
from inc_mp_plugin.stages.gains import encode
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.plan import PLAN, make_plan, plan_depends_on
from inc_mp_plugin.stages.sensitivity import HASH
from inc_mp_plugin.stages.time_validation import TIME_VALIDATION
from inc_mp_plugin.stages.validation import VALIDATION
from inc_mp_plugin.stages.verification import VERIFICATION

Value = TypeVar("Value")


@exclusive
def write_report(folder: Path) -> Path:
    """Write report.html, and every figure as PNG and SVG under figures/.

    Returns:
        The page's path.

    Raises:
        InputError: an artefact of the plan is missing, any artefact is damaged, or matplotlib is missing.
    """
    return write_pages(folder, report_info(find(folder)))


def find(folder: Path) -> Found:
    """Read every artefact of a folder that a report can show.

    Raises:
        InputError: an artefact of the plan is missing, any artefact is damaged, or the plan does not
            follow from its artefacts.
    """
    run, shelf = Run(folder), _Shelf(folder)
    made = shelf.depends_on_of(PLAN)
    shelf.depends_on_of(HASH)
    losses, noise = run.planned_losses, {"noise": run.plan.noise}
    job = _job(run, made)
    fresh = plan_depends_on(job, losses, run.free_gains)
    same: Json = {key: fresh[key] for key in ("sensitivity", "noise", "gains")}
    _check_plan(folder, made, same)
    validation = shelf.take(VALIDATION)
    if validation is not None and run.validation is None:
        shelf.outdated["validation"] = "validation.json is of another plan"
        validation = None
    return Found(
        str(folder),
        run.recipe.model_dump(mode="json"),
        run.graph,
        LossModel(run.sensitivity, losses.noise, losses.cached),
        losses.ops,
        run.free_gains,
        run.plan,
        _stability(run, losses, job, made.get("correction", 1.0)),
        shelf.take(FRONTIER, files_read(folder) | noise),
        validation,
        shelf.take(TIME_VALIDATION, {"gains": same["gains"]}),
        shelf.take(VERIFICATION, same | {"objective": job.objective, "tau": made.get("tau")}),
        _experiments(shelf, run.gains, same),
        run.held_back,
        shelf.depends_on,
        shelf.outdated,
    )


def _check_plan(folder: Path, made: Json, same: Json) -> None:
    others = [key for key, wanted in same.items() if made.get(key) != wanted]
    if others:
        message = (
            f"{folder / 'plan.json'} is of another state of things ({', '.join(others)}); run "
            f"`inc-mp solve {folder}`, or `inc-mp tune` again"
        )
        raise InputError(message)


@dataclass(frozen=True)
class _Shelf:
    """Artefacts that may be there; of those taken, what they followed from, or why they do not count."""

    folder: Path
    depends_on: dict[str, Json] = field(default_factory=dict)
    outdated: dict[str, str] = field(default_factory=dict)

    def take(self, artefact: Artefact[Value], expected: Mapping[str, Any] | None = None) -> Value | None:
        if not artefact.path(self.folder).exists():
            return None
        value, made, stem = artefact.read(self.folder), artefact.made_from(self.folder), _stem(artefact)
        others = [key for key, wanted in (expected or {}).items() if made.get(key) != wanted]
        if others:
            name = artefact.path(self.folder).name
            self.outdated[stem] = f"{name} is of another state of things ({', '.join(others)})"
            return None
        self.depends_on[stem] = made
        return value

    def depends_on_of(self, artefact: Artefact[Any]) -> Json:
        if not artefact.path(self.folder).exists():
            return {}
        self.depends_on[_stem(artefact)] = artefact.made_from(self.folder)
        return self.depends_on[_stem(artefact)]


def _stem(artefact: Artefact[Any]) -> str:
    return artefact.stem or artefact.kind


def _experiments(shelf: _Shelf, gains: Mapping[str, Gains], same: Json) -> tuple[Experiment, ...]:
    found = []
    for path in sorted((shelf.folder / "experiments").glob("*.json")):
        objective = path.stem.partition("-")[2]
        own = {objective: gains[objective]} if objective in gains else {}
        expected = {**same, "gains": store.fingerprint(encode(own))}
        one = shelf.take(experiment_artefact(path.stem), expected)
        if one is not None:
            found.append(one)
    return tuple(found)


def _job(run: Run, made: Json) -> Job:
    """Return what the plan was solved for, which may be another goal than the recipe's."""
    job = replace(run.job, **{key: made[key] for key in run.job.goal if key in made})
    # The least loss for a gain is the same at any tau that allows it.
    return job if job.gain_fraction is None and job.budget is None else replace(job, tau=None)


def _stability(run: Run, losses: LossModel, job: Job, correction: float) -> Stability:
    plan = run.plan
    gains = constrained(run.free_gains[plan.objective], run.planned_demands)
    values = run.values(job.strategy)
    return stability(plan, losses, lambda drawn: make_plan(job, gains, drawn, correction, values=values))
