"""The shipped recipes: a table of them, and the text of one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.knobs import KNOBS
from inc_mp_plugin.pipeline.recipe_file import read_recipe
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.runtime.shipped import shipped_folder


def recipes_table() -> Table:
    """Make the table of the recipes: name, objective, thresholds, and their own first words."""
    rows = []
    for name in _names():
        path = recipe_path(name)
        content = read_recipe(path)
        rows.append((name, str(content.get("objective", "memory")), _held(content), _about(path)))
    return Table("", ("recipe", "objective", "held to", "for"), tuple(rows), left=4)


def recipe_path(name: str) -> Path:
    """Find a shipped recipe by its name, or by the beginning of its name.

    Raises:
        InputError: there is none, or several begin so.
    """
    names = _names()
    beginning = name.removesuffix(".yaml")
    matches = [beginning] if beginning in names else [n for n in names if n.startswith(beginning)]
    if not matches:
        raise InputError(unknown("recipe", name, names))
    if len(matches) > 1:
        message = f"{len(matches)} recipes begin with {name!r}: {', '.join(matches)}; give more of the name"
        raise InputError(message)
    return shipped_folder() / f"{matches[0]}.yaml"


def _names() -> list[str]:
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def _held(content: dict[str, Any]) -> str:
    return ", ".join(f"{key} {content[key]:g}" for key in KNOBS if content.get(key) is not None)


def _about(path: Path) -> str:
    """Return the first clause of the comment that a recipe begins with."""
    lines = path.read_text(encoding="utf-8").splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("# "))
    text = " ".join(line[2:].strip() for line in lines[:end])
    ends = [place for mark in (". ", ": ", ":", ",") if (place := text.find(mark)) > 0]
    return text[: min(ends, default=len(text))]
