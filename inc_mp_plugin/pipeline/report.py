"""The report of a folder that `inc-mp tune` wrote, from the artefacts that are there and up to date."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.experiment import Experiment
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.results import Stability
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.document import report_info
from inc_mp_plugin.report.write import write_pages
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.store import Json
from inc_mp_plugin.solver.uncertainty import stability
from inc_mp_plugin.stages.experiment import experiment_artefact
from inc_mp_plugin.stages.frontier import FRONTIER, frontier_depends_on
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
        Path of the page.

    Raises:
        InputError: an artefact of the plan is missing, any artefact is damaged, or matplotlib is missing.
    """
    return write_pages(folder, report_info(read_artefacts(folder)))


def read_artefacts(folder: Path) -> RunArtefacts:
    """Read every artefact of a folder that a report can show.

    Raises:
        InputError: an artefact of the plan is missing, any artefact is damaged, or the plan is out of date.
    """
    run, shelf = Run(folder), _Shelf(folder)
    plan_from = shelf.depends_on_of(PLAN)
    shelf.depends_on_of(HASH)
    planned = run.as_planned
    losses, job = planned.losses, _job(planned)
    fresh = plan_depends_on(job, losses, run.free_gains)
    drawn_from = frontier_depends_on(folder, losses, planned.demands, planned.yardstick)
    same: Json = {key: fresh[key] for key in ("sensitivity", "noise", "gains")}
    if changed := _changed(plan_from, same):
        message = (
            f"{folder / 'plan.json'} is out of date ({changed} changed since); run "
            f"`inc-mp solve {folder}`, or `inc-mp tune` again"
        )
        raise InputError(message)
    validation = shelf.take(VALIDATION)
    if validation is not None and run.validation is None:
        shelf.outdated["validation"] = "validation.json is of another plan"
        validation = None
    return RunArtefacts(
        str(folder),
        run.recipe.model_dump(mode="json"),
        run.graph,
        run.all_losses,
        losses.ops,
        run.free_gains,
        run.plan,
        _stability(planned, job, plan_from.get("correction", 1.0)),
        shelf.take(FRONTIER, drawn_from),
        validation,
        shelf.take(TIME_VALIDATION, {"gains": same["gains"]}),
        shelf.take(VERIFICATION, same | {"objective": job.objective, "tau": plan_from.get("tau")}),
        _experiments(shelf, run.gains, same),
        run.held_back,
        run.everything,
        planned.demands.kept,
        shelf.depends_on,
        shelf.outdated,
    )


def _changed(depends_on: Json, expected: Mapping[str, Any]) -> str:
    """List the names of the dependencies that are not as expected, in one line."""
    return ", ".join(key for key, value in expected.items() if depends_on.get(key) != value)


@dataclass(frozen=True)
class _Shelf:
    """Artefacts that may be there; for each that was taken, its dependencies, or why it is out of date."""

    folder: Path
    depends_on: dict[str, Json] = field(default_factory=dict)
    outdated: dict[str, str] = field(default_factory=dict)

    def take(self, artefact: Artefact[Value], expected: Mapping[str, Any] | None = None) -> Value | None:
        if not artefact.path(self.folder).exists():
            return None
        value, depends_on = artefact.read(self.folder), artefact.made_from(self.folder)
        if changed := _changed(depends_on, expected or {}):
            name = artefact.path(self.folder).name
            self.outdated[_stem(artefact)] = f"{name} is out of date ({changed} changed since)"
            return None
        self.depends_on[_stem(artefact)] = depends_on
        return value

    def depends_on_of(self, artefact: Artefact[Any]) -> Json:
        if not artefact.path(self.folder).exists():
            return {}
        self.depends_on[_stem(artefact)] = artefact.made_from(self.folder)
        return self.depends_on[_stem(artefact)]


def _stem(artefact: Artefact[Any]) -> str:
    return artefact.stem or artefact.kind


def _experiments(shelf: _Shelf, gains: Mapping[str, Gains], same: Json) -> tuple[Experiment, ...]:
    experiments = []
    for path in sorted((shelf.folder / "experiments").glob("*.json")):
        objective = path.stem.partition("-")[2]
        own = {objective: gains[objective]} if objective in gains else {}
        expected = {**same, "gains": store.fingerprint(encode(own))}
        experiments.append(shelf.take(experiment_artefact(path.stem), expected))
    return tuple(experiment for experiment in experiments if experiment is not None)


def _job(planned: Run) -> Job:
    """Return the job of the plan; one of the least loss for a gain is the same at any tau that allows it."""
    job = planned.job
    return job if job.gain_fraction is None and job.budget is None else replace(job, tau=None)


def _stability(planned: Run, job: Job, correction: float) -> Stability:
    plan = planned.plan
    gains, values = planned.gains[plan.objective], planned.values(job.strategy)
    losses = planned.losses
    return stability(plan, losses, lambda drawn: make_plan(job, gains, drawn, correction, values=values))
