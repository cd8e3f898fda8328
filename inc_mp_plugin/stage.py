"""One stage of the pipeline: redo it only if something it depends on has changed, and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from inc_mp_plugin import store
from inc_mp_plugin.errors import InputError
from inc_mp_plugin.progress import say

Value = TypeVar("Value")
Json = dict[str, Any]


def run_stage(
    path: Path,
    kind: str,
    depends_on: Mapping[str, Any],
    decode: Callable[[Json], Value],
    make: Callable[[], tuple[Value, Json]],
) -> Value:
    """Reuse an artefact, or make and write it.

    Args:
        path: of the artefact.
        kind: of the artefact, for its schema.
        depends_on: everything the artefact follows from; it is stored beside the result.
        decode: reads the artefact's content.
        make: computes the value, and its content as JSON.
    """
    reason = "not there yet"
    if path.exists():
        try:
            content = store.read_json(path, kind)
            reason = changes(content.get("depends_on", {}), depends_on)
            if not reason:
                value = decode(content)
                say(f"{path.name}: still valid, reused")
                return value
        except (InputError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"damaged ({error})" if not isinstance(error, InputError) else str(error)
        say(f"making {path.name} again: {reason}")
    value, content = make()
    store.write_artefact(path, kind, {**content, "depends_on": dict(depends_on)})
    return value


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in one line what differs between two sets of dependencies; empty if nothing does.

    Example:
        >>> changes({"samples": 64, "model": "x"}, {"samples": 32, "model": "x"})
        'samples was 64, is 32'
        >>> changes({"serving": {"kv_cache": "bf16"}}, {"serving": {"kv_cache": "fp8"}})
        'serving.kv_cache was bf16, is fp8'
    """
    return "; ".join(_differences(before, now))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        old, new, key = before.get(name), now.get(name), f"{within}{name}"
        if old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from list(_differences(old, new, f"{key}.")) or [f"{key} was {old}, is {new}"]
        elif any(isinstance(value, str) and len(value) == 64 for value in (old, new)):
            yield f"{key} has changed"  # two hashes tell a person nothing
        else:
            yield f"{key} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
