"""The command to run next, whole and ready to paste, for messages; and folders that refuse a command."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.knobs import KNOBS
from inc_mp_plugin.core.literals import IN_MEMORY
from inc_mp_plugin.runtime import store

if TYPE_CHECKING:
    from inc_mp_plugin.pipeline.sections import ModelSection

SERVING_KEYS = ("kv_cache", "attention", "reuse_cache")
PLAN_KEYS = (
    *KNOBS,
    *("constraint", "objective", "strategy", "seed", "noise", "confidence", "targets"),
    *SERVING_KEYS,
)
DRY_RUN = "dry-run.json"


def solve_overrides(
    stored: Mapping[str, Any], planned: Mapping[str, Any], changes: Mapping[str, Any]
) -> list[str]:
    """List the overrides that make `inc-mp solve` plan as before, except for these changes.

    `inc-mp solve` starts from the stored recipe each time, so every other override of the plan must be given
    again.

    Args:
        stored: values of PLAN_KEYS in the recipe.
        planned: values of PLAN_KEYS that the plan was made with.
        changes: new values of some keys.

    Example:
        >>> stored = dict.fromkeys(PLAN_KEYS) | {"tau": 0.01, "targets": ("cpu-qdq",)}
        >>> solve_overrides(stored, stored | {"tau": 0.02}, {"targets": ("cpu-qdq", "vllm-gaudi")})
        ['tau=0.02', 'targets=[cpu-qdq,vllm-gaudi]']
    """
    values = {**planned, **changes}
    keys = [key for key in PLAN_KEYS if values[key] != stored[key]]
    if not set(KNOBS).isdisjoint(keys):  # an override of a threshold drops the thresholds of the recipe
        keys = [key for key in KNOBS if values[key] is not None] + [key for key in keys if key not in KNOBS]
    return [written(key, values[key]) for key in keys]


def solve_command(folder: Path, overrides: list[str]) -> str:
    """Write `inc-mp solve` as it is typed in a shell.

    Example:
        >>> solve_command(Path("my runs/x"), ["tau=0.02", "targets=[cpu-qdq]"])
        "inc-mp solve 'my runs/x' tau=0.02 'targets=[cpu-qdq]'"
    """
    return shlex.join(["inc-mp", "solve", str(folder), *overrides])


def key_of(override: str) -> str:
    """Return the key of an override, `key=value`."""
    return override.partition("=")[0]


def written(key: str, value: Any) -> str:
    """Write a value of a recipe as an override.

    Example:
        >>> written("targets", ("cpu-qdq",)), written("reuse_cache", True), written("confidence", None)
        ('targets=[cpu-qdq]', 'reuse_cache=true', 'confidence=null')
    """
    if value is None:
        return f"{key}=null"
    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    return f"{key}=[{','.join(value)}]" if isinstance(value, tuple) else f"{key}={value}"


def mark_dry_run(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write dry-run.json, which marks a folder as one of a dry run, with the content of the recipe.

    Raises:
        InputError: the folder holds a plan of `inc-mp tune`.
    """
    if (folder / "recipe.json").exists():
        message = f"{folder} holds a plan, whose files a dry run would replace; give another folder by --out"
        raise InputError(message)
    store.write_artefact(folder / DRY_RUN, "dry_run", {"recipe": dict(recipe)})


def refuse_in_memory(folder: Path) -> None:
    """Refuse a folder of `mp.tune`, whose artefacts those of a recipe would replace.

    Raises:
        InputError: the folder is one of `mp.tune`.
    """
    path = folder / "recipe.json"
    if path.exists() and store.read_json(path, "recipe")["model"].get("weights") == IN_MEMORY:
        message = (
            f"{folder} holds the plan of a model that a Python script had in memory, which `inc-mp tune` "
            "would replace; give another folder by --out"
        )
        raise InputError(message)


def refuse_model_in_memory(model: ModelSection) -> None:
    """Refuse a model that cannot be loaded, because it was in memory.

    Raises:
        InputError: the model was in memory.
    """
    if model.weights == IN_MEMORY:
        message = (
            f"this needs the model and its samples, but {model.name_or_path} was in the memory of a Python "
            "script; measure in that script (mp.tune, mp.apply); solve, frontier, emit and report work here"
        )
        raise InputError(message)


def refuse_dry_run(folder: Path) -> None:
    """Refuse a folder of a dry run, which holds a graph, gains and files, but no sensitivities.

    Raises:
        InputError: the folder is one of a dry run.
    """
    if (folder / DRY_RUN).exists():
        message = (
            f"{folder} is of a dry run, without sensitivities and plan.json; run `inc-mp tune RECIPE.yaml` "
            "without --dry-run, then this command for the folder that it writes"
        )
        raise InputError(message)
