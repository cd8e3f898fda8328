"""eagl.json and alps.json: the values that price ops instead of their loss MSE."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Strategy
from inc_mp_plugin.core.plan import ALPS, EAGL, VALUE_METHODS, OpValues
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.artefact import Artefact, artefact_of
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import ask
from inc_mp_plugin.runtime.reuse import changes, lasting, numbered, partial
from inc_mp_plugin.runtime.store import Json

if TYPE_CHECKING:
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job

_OWN = "values."  # begins the names of dependencies that sensitivities do not have


def values_stage(
    job: Job, subject: Subject, graph: Graph, out: Path, *, method: Strategy | None = None
) -> OpValues | None:
    """Measure the values of a strategy, or read their artefact; return None for a strategy without values.

    Args:
        job: formats, scales and strategy.
        subject: the model.
        graph: from `capture`.
        out: folder of the artefacts.
        method: strategy; that of the job if None.

    Raises:
        InputError, NonFiniteError: as `measure_eagl` and `measure_alps_without_training`.
    """
    name = method or job.strategy
    if name not in VALUE_METHODS:
        return None
    depends_on = numbered(name, _depends_on(job, subject))

    def make() -> OpValues:
        from inc_mp_plugin.sensitivity.eagl import measure_eagl

        ask(name, graph)
        if name == ALPS:
            return _measure_alps(job, subject, graph, out)
        say("EAGL: entropy of every weight ...")
        return measure_eagl(subject.model, graph, job.all_formats, job.value_scales)

    return _artefact(name).make(out, depends_on, make)


def values_are_there(job: Job, subject: Subject, folder: Path, method: Strategy) -> bool:
    """Tell if a folder holds the values of a method, of the same model and data.

    Args:
        job: formats and scales.
        subject: the model.
        folder: folder of the artefacts.
        method: strategy with values.
    """
    artefact = _artefact(method)
    try:
        before = artefact.made_from(folder)
    except InputError:
        return False
    before.pop("made_by")
    return not changes(before, numbered(artefact.kind, numbered(method, _depends_on(job, subject))))


def tasks(job: Job, subject: Subject, out: Path) -> dict[str, Callable[[Graph], object]]:
    """List the tasks of other processes that are asked to measure values, by method; see `plan_together`.

    Args:
        job: formats and scales.
        subject: the model.
        out: folder of the artefacts.
    """
    return {EAGL: lambda graph: None, ALPS: lambda graph: _measure_alps(job, subject, graph, out)}


def stored_values(method: Strategy, folder: Path, measured: Json) -> OpValues | None:
    """Read the values of a strategy from a folder; return None for a strategy without values.

    Args:
        method: the strategy.
        folder: folder of the artefacts.
        measured: dependencies of the sensitivities in the folder.

    Raises:
        InputError: the values are missing, damaged, or of another model or other data.
    """
    if method not in VALUE_METHODS:
        return None
    artefact = _artefact(method)
    path = artefact.path(folder)
    command = f"run `inc-mp tune RECIPE.yaml strategy={method} --out {folder}`, which measures them"
    if not path.exists():
        message = f"strategy {method} needs values of its own, but there is no {path}; {command}"
        raise InputError(message)
    depends_on = lasting(artefact.made_from(folder))
    shared = {
        key: value for key, value in depends_on.items() if key != "made_by" and not key.startswith(_OWN)
    }
    difference = changes(measured, shared)
    if difference:
        message = f"{path} is out of date ({difference}); {command}"
        raise InputError(message)
    return artefact.read(folder)


def _artefact(method: str) -> Artefact[OpValues]:
    return replace(artefact_of(OpValues, "op_values"), stem=method)


def _depends_on(job: Job, subject: Subject) -> Json:
    scales = None if job.value_scales is None else asdict(job.value_scales)
    return {**subject.depends_on, f"{_OWN}formats": list(job.all_formats), f"{_OWN}scales": scales}


def _measure_alps(job: Job, subject: Subject, graph: Graph, out: Path) -> OpValues:
    from inc_mp_plugin.sensitivity.alps import measure_alps_without_training

    return measure_alps_without_training(
        subject.model,
        graph,
        subject.batches if subject.own_share else ranks.share(subject.batches),
        subject.loss_fn,
        formats=job.formats,
        partial=partial(out, ALPS, _depends_on(job, subject)),
        scales=job.value_scales,
    )
