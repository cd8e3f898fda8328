"""From a folder that `inc-mp tune` wrote to its report: whatever artefacts are there and still valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from inc_mp_plugin.runtime import artefacts, result_artefacts, store
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.runtime.store import Json
from inc_mp_plugin.solver.stability import stability
from inc_mp_plugin.solver.ties import constrained
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.plan import make_plan, plan_depends_on

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
    made = shelf.take("plan", "plan", _depends_on) or {}
    shelf.take("sensitivity", "sensitivity", _depends_on)
    losses, noise = run.planned_losses, {"noise": run.plan.noise}
    job = _job(run, made)
    fresh = plan_depends_on(job, losses, run.free_gains)
    same: Json = {key: fresh[key] for key in ("sensitivity", "noise", "gains")}
    _check_plan(folder, made, same)
    validation = shelf.take("validation", "validation", result_artefacts.validation_from_json)
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
        shelf.take("frontier", "frontier", result_artefacts.frontiers_from_json, _files(folder) | noise),
        validation,
        shelf.take(
            "time_validation",
            "time_validation",
            result_artefacts.time_validation_from_json,
            {"gains": same["gains"]},
        ),
        shelf.take(
            "verification",
            "verification",
            result_artefacts.verification_from_json,
            same | {"objective": job.objective, "tau": made.get("tau")},
        ),
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

    def take(
        self, stem: str, kind: str, decode: Callable[[Json], Value], expected: Mapping[str, Any] | None = None
    ) -> Value | None:
        path = self.folder / f"{stem}.json"
        if not path.exists():
            return None
        value, made = artefacts.load(path, kind, decode), artefacts.load(path, kind, _depends_on)
        others = [key for key, wanted in (expected or {}).items() if made.get(key) != wanted]
        if others:
            self.outdated[stem] = f"{path.name} is of another state of things ({', '.join(others)})"
            return None
        self.depends_on[stem] = made
        return value


def _depends_on(content: Json) -> Json:
    return {**content.get("depends_on", {}), "made_by": content.get("made_by")}


def _files(folder: Path) -> Json:
    """What frontier.json depends on, of the other files."""
    return {
        "sensitivity": store.read_json(folder / "sensitivity.json", "sensitivity")["arrays_sha256"],
        "gains": store.fingerprint(store.read_json(folder / "gains.json", "gains")),
    }


def _experiments(shelf: _Shelf, gains: Mapping[str, Gains], same: Json) -> tuple[Experiment, ...]:
    found = []
    for path in sorted((shelf.folder / "experiments").glob("*.json")):
        objective = path.stem.partition("-")[2]
        own = {objective: gains[objective]} if objective in gains else {}
        expected = {**same, "gains": store.fingerprint(artefacts.gains_to_json(own))}
        stem, decode = f"experiments/{path.stem}", result_artefacts.experiment_from_json
        one = shelf.take(stem, "experiment", decode, expected)
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
