"""Faults of a recipe, as pydantic finds them, in one line each."""

from __future__ import annotations

import difflib
from typing import Any, get_args

from inc_mp_plugin.pipeline.sections import Section


def in_one_line(error: Any, recipe: type[Section]) -> str:
    """Say in one line where a fault is, which value was given, and what is allowed."""
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
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    value = "empty" if error["input"] is None else repr(error["input"])
    if error["type"] == "model_type":
        return f"{where} is {value}: it must hold keys of {', '.join(_keys_of(recipe, [where]))}"
    if error["type"] == "tuple_type":
        example = error["input"] or recipe.model_fields[where].default[0]
        return f"{where} is {value}: it must be a list, such as [{example}]"
    if error["type"] in ("bool_parsing", "bool_type"):
        return f"{where} is {value}: it must be true or false"
    return f"{where} is {value}: {error['msg'].lower()}"


def _keys_of(recipe: type[Section], sections: list[Any]) -> list[str]:
    model: Any = recipe
    for section in sections:
        annotation = model.model_fields[section].annotation
        options = [annotation, *get_args(annotation)]
        model = next(o for o in options if isinstance(o, type) and issubclass(o, Section))
    return list(model.model_fields)
