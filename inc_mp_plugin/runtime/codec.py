"""Frozen values as JSON and back, by their types alone: dataclasses, named tuples, tuples and mappings."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

Value = TypeVar("Value")
Json = dict[str, Any]

_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # making one takes milliseconds


def to_json(value: object) -> Json:
    """Write a frozen dataclass as JSON has it: fields by name, tuples as lists.

    Example:
        >>> from inc_mp_plugin.core.graph import Gemm, Op
        >>> to_json(Op("a", "linear", 8, 4, 1, gemms=(Gemm(1, 2, 2, 2),)))["gemms"]
        [[1, 2, 2, 2]]
    """
    content: Json = _adapter(type(value)).dump_python(value, mode="json")
    return content


def from_json(kind: type[Value], content: Json) -> Value:
    """Read a frozen dataclass: keys that it does not know are ignored, absent ones have their defaults.

    Args:
        kind: the dataclass.
        content: as `to_json` writes it, of this version or another.

    Raises:
        ValueError: a key without a default is missing, or a value is of another type; in one line.
    """
    try:
        value: Value = _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{where}: {first['msg'].lower()}"
        raise ValueError(message) from error
    return value
