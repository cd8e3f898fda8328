"""configs/: the files of a target for INC, and the script that runs with them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.text import threshold
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.targets import TARGETS, get_target
from inc_mp_plugin.targets.commands import SCRIPT_REQUEST, Deployment, commands
from inc_mp_plugin.targets.layout import Captured

if TYPE_CHECKING:
    from inc_mp_plugin.stages.job import Job


ENDS = (".json", "-measure.json", ".sh")


def counted(base: str, formats: Mapping[str, str]) -> str:
    """Say how many ops run in FP8.

    Example:
        >>> counted("bf16", {"q": "fp8_e4m3", "k": "bf16"})
        '1 of 2 ops in FP8'
    """
    return f"{sum(format_name != base for format_name in formats.values())} of {len(formats)} ops in FP8"


def title_of(plan: Plan) -> str:
    """Say in one line what plan a script runs."""
    return f"plan: {counted(plan.base, plan.formats)}, {threshold(plan)}, objective {plan.objective}"


def write_files(job: Job, plan: Plan, graph: Graph, target: str, *, title: str, out: Path) -> Path:
    """Write configs/<target>.json anew; refuse if INC would not select exactly the planned ops.

    A target that runs FP8 also gets configs/<target>-measure.json, the file with which INC measures first. A
    target on Gaudi also gets configs/<target>.sh, the commands that run with both files.

    Args:
        job: names the model, the scale method and the request.
        plan: the formats of all ops, and the settings of serving.
        graph: from `capture`.
        target: name of the consumer.
        title: one line about the plan, for the script.
        out: folder of the run.

    Raises:
        InputError: an unknown target, or formats that INC cannot mix.
        SelectionError: the consumer cannot run these formats, or INC would select other modules.
    """
    from inc_mp_plugin.inc.config import config_of, measure_config

    consumer = get_target(target)
    quantize, measure, script = _files(out, target)
    for path in (quantize, measure, script):
        path.unlink(missing_ok=True)  # never leave the files of another plan behind
    captured, method = Captured.of(graph), job.scale_method
    config = config_of(plan.base, plan.formats, consumer, captured, scale_method=method, serving=plan.serving)
    stats = _stats(job.model_name, config.get("dump_stats_path", ""))
    if "dump_stats_path" in config:  # each model measures into a folder of its own
        config["dump_stats_path"] = f"{stats}/measure"
    store.write_json(quantize, config)
    lowered = sum(format_name != plan.base for format_name in plan.formats.values())
    say(f"configs/{quantize.name}: INC selects exactly the {lowered} ops of the plan")
    if consumer.scale_methods:
        store.write_json(measure, measure_config(config, consumer))
        say(f"configs/{measure.name} measures for it")
    if consumer.device == "hpu":
        request, classes = job.script_request or SCRIPT_REQUEST, set(graph.modules.values())
        deployment = Deployment(job.model_name, classes, plan.serving, stats, request, title)
        store.write_bytes(script, commands(target, deployment).encode())
        say(f"configs/{script.name} runs both")
    return quantize


def clear_files(out: Path, rewritten: Collection[str] = ()) -> None:
    """Remove the files of every target, which are of a former plan; nothing else in configs/ is touched.

    Args:
        out: folder of the run.
        rewritten: targets whose files are about to be made again, so that no message names them.
    """
    removed = []
    for target in TARGETS:
        there = [path for path in _files(out, target) if path.exists()]
        removed += [path.name for path in there if target not in rewritten]
        for path in there:
            path.unlink()
    if removed:
        names = ", ".join(removed)
        say(f"removed from {out / 'configs'}, files of a former plan or of other targets: {names}")


def _files(out: Path, target: str) -> list[Path]:
    return [out / "configs" / f"{target}{end}" for end in ENDS]


def _stats(model: str, path: str) -> str:
    """Name the folder of a model's measurements, ./hqt_output/<model>/<folder of `path`>, safe in a shell."""
    name = PurePosixPath(model).name
    name = Path(model).resolve().name if name in ("", "..") else name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name)
    return f"./hqt_output/{plain or 'model'}/{PurePosixPath(path).parent.name}"
