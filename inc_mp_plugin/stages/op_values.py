"""eagl.json and alps.json: what ops are priced by instead of their loss MSE, made or reused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.op_values import ALPS, EAGL, METHODS, OpValues
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.runtime import ranks, store
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import ask
from inc_mp_plugin.runtime.reuse import changes, lasting, numbered, partial, run_stage
from inc_mp_plugin.sensitivity.scales import Scales
from inc_mp_plugin.targets import CPU_QDQ, check_scale_method, get_target

if TYPE_CHECKING:
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.targets.target import Target

Json = dict[str, Any]
_KIND = "op_values"
_OWN = "values."  # begins the names of what values depend on beside the model and the data


@dataclass(frozen=True, slots=True)
class Low:
    """The formats that ops may take, the base format first, and how INC scales to those of FP8."""

    formats: tuple[str, ...]
    scales: Scales | None


def scales_of(recipe: Recipe, target: Target) -> Scales:
    """How a target scales to FP8, as a recipe says."""
    method = check_scale_method(target, recipe.scale_method)
    return Scales(method, "cpu" if target.device == "cpu" else recipe.device)


def low_of(recipe: Recipe) -> Low:
    """The formats of a recipe, and how its first target that runs FP8 scales to them.

    Raises:
        InputError: the recipe's device has not the scales of that target.
    """
    able = [target for target in map(get_target, recipe.targets) if target.scale_methods]
    return Low((recipe.model.dtype, *recipe.formats), scales_of(recipe, able[0] if able else CPU_QDQ))


def values_stage(method: str, subject: Subject, graph: Graph, low: Low, out: Path) -> OpValues | None:
    """The values of a method, from its artefact; None for a strategy that has none.

    Raises:
        InputError, NonFiniteError: as `measure_eagl` and `measure_alps_without_training`.
    """
    if method not in METHODS:
        return None
    depends_on = numbered(method, _depends_on(subject, low))

    def make() -> tuple[OpValues, Json]:
        ask(method, graph)
        values = _MEASURE[method](subject, graph, low, out)
        return values, asdict(values)

    return run_stage(out / f"{method}.json", _KIND, depends_on, _from_json, make)


def tasks(subject: Subject, low: Low, out: Path) -> dict[str, Callable[[Graph], object]]:
    """What other processes do when they are asked to measure values; see `together.plan_together`."""
    return {
        EAGL: lambda graph: None,
        ALPS: lambda graph: _measure_alps(subject, graph, low, out),
    }


def stored_values(method: str, folder: Path, measured: Json) -> OpValues | None:
    """The values of a method that are in a folder; None for a strategy that has none.

    Args:
        method: the strategy.
        folder: of the artefacts.
        measured: what the sensitivities in the folder follow from.

    Raises:
        InputError: they are missing, damaged, or of another model or other data.
    """
    if method not in METHODS:
        return None
    path = folder / f"{method}.json"
    command = f"run `inc-mp tune RECIPE.yaml strategy={method} --out {folder}`, which measures them"
    if not path.exists():
        message = f"strategy {method} needs values of its own, which {path} would hold; {command}"
        raise InputError(message)
    content = store.read_json(path, _KIND)
    made = {key: value for key, value in lasting(content["depends_on"]).items() if not key.startswith(_OWN)}
    difference = changes(measured, made)
    if difference:
        message = f"{path} is of another state of things ({difference}); {command}"
        raise InputError(message)
    return _from_json(content)


def _depends_on(subject: Subject, low: Low) -> Json:
    scales = None if low.scales is None else asdict(low.scales)
    return {**subject.depends_on, f"{_OWN}formats": list(low.formats), f"{_OWN}scales": scales}


def _from_json(content: Json) -> OpValues:
    values = {format: dict(ops) for format, ops in content["values"].items()}
    return OpValues(content["method"], content["unit"], values)


def _measure_eagl(subject: Subject, graph: Graph, low: Low, out: Path) -> OpValues:
    from inc_mp_plugin.sensitivity.eagl import measure_eagl

    del out
    say("EAGL: entropy of every weight ...")
    return measure_eagl(subject.model, graph, low.formats, low.scales)


def _measure_alps(subject: Subject, graph: Graph, low: Low, out: Path) -> OpValues:
    from inc_mp_plugin.sensitivity.alps import measure_alps_without_training

    own = f".{ranks.rank()}" if ranks.rank() else ""
    return measure_alps_without_training(
        subject.model,
        graph,
        subject.batches if subject.own_share else ranks.share(subject.batches),
        subject.loss_fn,
        low.formats[1:],
        partial(out / f"alps.partial{own}.npz", ALPS, _depends_on(subject, low)),
        low.scales,
    )


_MEASURE = {
    EAGL: _measure_eagl,
    ALPS: _measure_alps,
}
