"""Faults of a recipe, as pydantic finds them, in one line each."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from inc_mp_plugin.pipeline.sections import Section


def in_one_line(error: Any, recipe: type[Section], *, given: bool = False) -> str:
    """Say in one line where a fault is, which value was given, and what is allowed.

    Args:
        error: from pydantic.
        recipe: its kind.
        given: the reader knows key and value already, from an override: what is allowed is enough.
    """
    where = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        *sections, key = error["loc"]
        keys = _keys_of(recipe, sections)
        near = difflib.get_close_matches(str(key), keys, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}"
        return f"unknown key {where!r}; {hint}"
    if error["type"] == "missing":
        return f"key {where!r} is missing"
    if error["type"] == "value_error":
        fault = str(error["ctx"]["error"])
        return fault if given or not where else f"{where}: {fault}"
    allowed = _allowed(error, where, recipe)
    value = "empty" if error["input"] is None else repr(error["input"])
    return allowed if given else f"{where} is {value}: {allowed}"


def _allowed(error: Any, where: str, recipe: type[Section]) -> str:
    if error["type"] == "model_type":
        return f"it must hold keys of {', '.join(_keys_of(recipe, [where]))}"
    if error["type"] == "tuple_type":
        example = error["input"] or recipe.model_fields[where].default[0]
        return f"it must be a list, such as [{example}]"
    if error["type"] in ("bool_parsing", "bool_type"):
        return "it must be true or false"
    return str(error["msg"]).lower()


def _keys_of(recipe: type[Section], sections: list[Any]) -> list[str]:
    model: Any = recipe
    for section in sections:
        annotation = model.model_fields[section].annotation
        options = [annotation, *get_args(annotation)]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(model.model_fields)
