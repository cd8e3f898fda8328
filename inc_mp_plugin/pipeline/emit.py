"""The files of a target for the plan of a folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, SelectionError, unknown
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.next_command import SERVING_KEYS, key_of, solve_command, written
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.runtime.lock import exclusive
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.target import Target

# A recipe of which only the keys of serving count: every value of these keys fits the rest.
_ANY_SERVING = {
    "model": {"name_or_path": "any"},
    "calibration": {"data": "any.jsonl"},
    "tau": 1.0,
    "targets": ["optimum-habana"],
}


@exclusive
def emit_files(folder: Path, target: str, overrides: list[str]) -> Path:
    """Write configs/<target>.json for the plan of a folder, and the files that belong to it.

    Args:
        folder: folder of the run.
        target: name of the consumer.
        overrides: settings of serving that the files are for, such as `attention=flash`.

    Raises:
        InputError: an unknown target or key, an artefact that is missing or damaged, or the plan was made
            for other settings of serving.
        SelectionError: the consumer cannot run the plan, or INC would select other ops than the plan's.
    """
    from inc_mp_plugin.stages.files import title_of, write_files

    keys = list(map(key_of, overrides))
    faults = [unknown("key of emit", key, SERVING_KEYS) for key in keys if key not in SERVING_KEYS]
    if faults:
        raise InputError("\n".join(faults))
    get_target(target)
    run = Run(folder)
    plan, targets = run.plan, tuple(dict.fromkeys([*run.plan.targets, target]))
    try:
        plan = replace(plan, serving=_serving(run, target, targets, overrides) if keys else plan.serving)
        return write_files(run.job, plan, run.graph, target, title=title_of(plan), out=folder)
    except SelectionError as error:
        if target in plan.targets:
            raise
        command = solve_command(folder, run.solved_again(targets=targets))
        message = f"{error}; solve with {target} among the targets, then emit again: {command}"
        raise SelectionError(message) from None


def _serving(run: Run, target: str, targets: Sequence[str], overrides: list[str]) -> Serving:
    """Return the plan's serving with these overrides, if the target runs the plan alike with them."""
    recipe, planned = parse_recipe(dict(_ANY_SERVING), overrides, "emit"), run.plan.serving
    serving = replace(planned, **{key: getattr(recipe, key) for key in map(key_of, overrides)})
    if runs_alike(get_target(target), Captured.of(run.graph), planned, serving):
        return serving
    old, new = asdict(planned), asdict(serving)
    others = [key for key in new if new[key] != old[key]]
    was, will = (" ".join(written(key, settings[key]) for key in others) for settings in (old, new))
    command = solve_command(run.folder, run.solved_again(targets=targets, **new))
    message = (
        f"no {target} file was made: the plan is for {was}; with {will}, {target} runs the model in another "
        f"way; solve for that, then emit again: {command}"
    )
    raise InputError(message)


def runs_alike(consumer: Target, captured: Captured, old: Serving, new: Serving) -> bool:
    """Tell if a consumer runs a model in the same modules, by the same rules, under two settings of serving.

    Args:
        consumer: the target.
        captured: the model.
        old: the first settings.
        new: the second settings.
    """
    layout = consumer.lay_out(captured, old)
    if layout.caches and old.kv_cache != new.kv_cache:
        return False
    return layout == consumer.lay_out(captured, new)
