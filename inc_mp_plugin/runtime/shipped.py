"""The recipes that ship with the package: in a clone beside it, in an installed wheel inside of it."""

from __future__ import annotations

from pathlib import Path

from inc_mp_plugin.runtime.progress import say

_PACKAGE = Path(__file__).parent.parent
_NAME = "recipes"


def shipped_folder() -> Path:
    """Return the folder of the recipes, with the models and texts that they name."""
    inside = _PACKAGE / _NAME
    return inside if inside.is_dir() else _PACKAGE.parent / _NAME


def or_shipped(path: str) -> str:
    """Return a path; for one under `recipes/` that does not exist here, that of the package, which is said.

    So that a recipe works in any folder as it does in a clone.

    Example:
        >>> or_shipped("recipes/nothing"), or_shipped("org/model")
        ('recipes/nothing', 'org/model')
    """
    parts = Path(path).parts
    if parts[:1] != (_NAME,) or Path(path).exists():
        return path
    shipped = shipped_folder().joinpath(*parts[1:])
    if not shipped.exists():
        return path
    say(f"{path} is not here: the package's own is taken, {shipped}")
    return str(shipped)
