"""Relative paths of a recipe: beside it, else in the working folder, else those that ship."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.source import may_be_on_a_hub
from inc_mp_plugin.pipeline.next_command import refuse_model_in_memory
from inc_mp_plugin.pipeline.own_loss import loss_beside
from inc_mp_plugin.runtime.shipped import or_shipped

if TYPE_CHECKING:
    from inc_mp_plugin.pipeline.recipe import Recipe


def look_beside(content: dict[str, Any], folder: Path) -> None:
    """Replace relative paths by those beside the recipe, or else by shipped ones, where these exist."""
    if isinstance(content.get("loss"), str) and content["loss"].rpartition(":")[0]:
        content["loss"] = loss_beside(content["loss"], folder)
    for name, keys in (
        ("model", ("name_or_path", "tokenizer")),
        ("calibration", ("data",)),
        ("validation", ("data",)),
    ):
        section = content.get(name)
        if not isinstance(section, dict):
            continue
        for key in keys:
            value = section.get(key)
            if not isinstance(value, str) or not value or Path(value).is_absolute():
                continue
            beside = folder / value
            section[key] = str(beside) if beside.exists() else or_shipped(value)


def refuse_missing_data(recipe: Recipe, folder: Path) -> None:
    """Refuse a recipe whose data is in neither place where a relative path is looked for.

    Args:
        recipe: the checked recipe.
        folder: of the recipe.

    Raises:
        InputError: a file is missing, and the text names both places; or model and data were in memory.
    """
    refuse_model_in_memory(recipe.model)
    for name, section in (("calibration", recipe.calibration), ("validation", recipe.validation)):
        path = section.data if section else folder
        if not path.exists() and not may_be_on_a_hub(path):
            if (folder / path).exists():
                message = (
                    f"{name}.data does not exist: {path.absolute()}; on the command line a relative path "
                    "is of the working folder"
                )
                raise InputError(message)
            places = [path] if path.is_absolute() else [(folder / path).absolute(), path.absolute()]
            named = " or ".join(dict.fromkeys(map(str, places)))
            message = (
                f"{name}.data does not exist: {named}; a relative path is looked for beside the recipe, then "
                "in the working folder"
            )
            raise InputError(message)
