"""Writing the files of a target: for INC, and the commands that use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin import store
from inc_mp_plugin.plan import Graph, Plan
from inc_mp_plugin.progress import say
from inc_mp_plugin.serving import Serving
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.commands import Deployment, commands
from inc_mp_plugin.targets.layout import Captured

if TYPE_CHECKING:
    from inc_mp_plugin.recipe import Recipe


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a file is to say: the formats of all ops, and how the model is served."""

    base: str
    formats: Mapping[str, str]
    serving: Serving


def emit(plan: Plan, graph: Graph, target: str, out: Path, recipe: Recipe) -> Path:
    """The files of a plan; see `write_files`."""
    return write_files(Wanted(plan.base, plan.formats, plan.serving), graph, target, out, recipe)


def write_files(wanted: Wanted, graph: Graph, target: str, out: Path, recipe: Recipe) -> Path:
    """configs/<target>.json, made anew: refused unless INC would select exactly the planned ops.

    For a consumer on Gaudi also configs/<target>-measure.json and configs/<target>.sh: the file that
    measures first, and the commands to run with both.

    Args:
        wanted: the formats.
        graph: of the model.
        target: the consumer.
        out: folder of the run.
        recipe: names the model and the scale method.

    Raises:
        InputError: an unknown target, or formats that INC cannot mix.
        SelectionError: the consumer cannot run these formats, or INC would select other modules.
    """
    from inc_mp_plugin.inc.config import config_of, measure_config

    folder, consumer = out / "configs", get_target(target)
    quantize, measure, script = (folder / f"{target}{end}" for end in (".json", "-measure.json", ".sh"))
    for path in (quantize, measure, script):
        path.unlink(missing_ok=True)  # never leave the files of another plan behind
    captured, method = Captured.of(graph), recipe.scale_method
    config = config_of(wanted.base, wanted.formats, consumer, captured, method, wanted.serving)
    store.write_json(quantize, config)
    lowered = sum(format != wanted.base for format in wanted.formats.values())
    say(f"configs/{quantize.name}: INC selects exactly the {lowered} ops of the plan")
    if consumer.device == "hpu":
        store.write_json(measure, measure_config(config, consumer))
        classes = set(graph.modules.values())
        text = commands(target, Deployment(recipe.model.name_or_path, classes, wanted.serving))
        store.write_bytes(script, text.encode())
        say(f"configs/{measure.name} measures for it; run both with configs/{script.name}")
    return quantize
