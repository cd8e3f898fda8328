"""The files of a target for the plan of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, SelectionError, unknown
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import SERVING_KEYS, key_of, solve_command, written
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.target import Target

if TYPE_CHECKING:
    pass


# A recipe of which only the keys of serving count: any value of theirs is right in it.
_SERVED_ANYHOW = {
    "model": {"name_or_path": "any"},
    "calibration": {"data": "any.jsonl"},
    "tau": 1.0,
    "targets": ["optimum-habana"],
}


@exclusive
def emit_files(folder: Path, target: str, overrides: list[str]) -> Path:
    """Write configs/<target>.json for the plan of a folder, and the files that belong to it.

    Args:
        folder: of the run.
        target: the consumer.
        overrides: how the model will be served, where that is to be sure: `attention=flash`.

    Raises:
        InputError: an unknown target or key, an artefact that is missing or damaged, or the plan was made
            for another way of serving.
        SelectionError: the consumer cannot run the plan, or INC would select other ops than the plan's.
    """
    from inc_mp_plugin.stages.files import title_of, write_files

    given = list(map(key_of, overrides))
    faults = [unknown("key of emit", key, SERVING_KEYS) for key in given if key not in SERVING_KEYS]
    if faults:
        raise InputError("\n".join(faults))
    get_target(target)
    run = Run(folder)
    plan, targets = run.plan, tuple(dict.fromkeys([*run.plan.targets, target]))
    served = _served(run, target, targets, overrides) if given else plan.serving
    try:
        plan = replace(plan, serving=served)
        return write_files(run.job, plan, run.graph, target, title=title_of(plan), out=folder)
    except SelectionError as error:
        if target in plan.targets:
            raise
        command = solve_command(folder, run.solved_again(targets=targets))
        message = f"{error}; solve with {target} among the targets, then emit again: {command}"
        raise SelectionError(message) from None


def _served(run: Run, target: str, targets: Sequence[str], overrides: list[str]) -> Serving:
    """Return how the model will be served, if that is the plan's own way for this target."""
    asked, planned = parse_recipe(dict(_SERVED_ANYHOW), overrides, "emit"), run.plan.serving
    wanted = replace(planned, **{key: getattr(asked, key) for key in map(key_of, overrides)})
    if runs_alike(get_target(target), Captured.of(run.graph), planned, wanted):
        return wanted
    old, new = asdict(planned), asdict(wanted)
    others = [key for key in new if new[key] != old[key]]
    was, will = (" ".join(written(key, one[key]) for key in others) for one in (old, new))
    command = solve_command(run.folder, run.solved_again(targets=targets, **new))
    message = (
        f"no {target} file was made: the plan is for {was}, not {will}, where {target} runs the model in "
        f"another way; solve for that, then emit again: {command}"
    )
    raise InputError(message)


def runs_alike(consumer: Target, captured: Captured, one: Serving, other: Serving) -> bool:
    """Tell if a consumer runs a model in the same modules, by the same rules, served in two ways.

    Args:
        consumer: of the plan.
        captured: the model.
        one: the first way.
        other: the second way.
    """
    layout = consumer.lay_out(captured, one)
    if layout.caches and one.kv_cache != other.kv_cache:
        return False
    return layout == consumer.lay_out(captured, other)
