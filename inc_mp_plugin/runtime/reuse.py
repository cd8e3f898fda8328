"""One stage of the pipeline: redo it only if something it depends on has changed, and say so."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import ranks, store
from inc_mp_plugin.runtime.progress import say

Value = TypeVar("Value")
Json = dict[str, Any]

# A number per kind of artefact, raised with every change of what comes out for the same input: what an older
# version made is then made again, and nothing else. "losses" counts in everything that is measured
# on held-out samples. Version 0.1.0, which wrote no numbers, is 1 throughout.
ARITHMETIC = {
    "graph": 1,
    "sensitivity": 2,
    "eagl": 1,
    "alps": 2,
    "gains": 1,
    "timing": 1,
    "plan": 2,
    "losses": 3,
    "verification": 2,
    "validation": 2,
    "time_validation": 1,
    "frontier": 3,
    "experiment": 4,
}
_NUMBERS = "arithmetic"


def run_stage(
    path: Path,
    kind: str,
    depends_on: Mapping[str, Any],
    *,
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
    depends_on = numbered(kind, depends_on)
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
    made_by = f"inc-mp-plugin {metadata.version('inc-mp-plugin')}"
    store.write_artefact(path, kind, {**content, "depends_on": depends_on, "made_by": made_by})
    # Of all processes, and not before the result is there.
    for unfinished in path.parent.glob(f"{path.stem}.partial*"):
        unfinished.unlink(missing_ok=True)
    return value


def numbered(kind: str, depends_on: Mapping[str, Any]) -> Json:
    """Add the number of this kind's arithmetic to dependencies, beside the numbers that are there."""
    numbers = {**depends_on.get(_NUMBERS, {}), kind: ARITHMETIC.get(kind, 1)}
    return {**depends_on, _NUMBERS: numbers}


def partial(folder: Path, kind: str, depends_on: Mapping[str, Any]) -> store.Partial:
    """Name the file of a stage that is under way, valid while all that the stage depends on is the same.

    Of several processes each has a file of its own, for its share of the work, and as many processes must go
    on as there were.

    Args:
        folder: of the artefacts.
        kind: of the artefact that the stage makes.
        depends_on: everything the stage follows from.
    """
    rank, size = ranks.rank(), ranks.size()
    share = {"share": [rank, size]} if size > 1 else {}
    own = f".{rank}" if rank else ""
    path = folder / f"{kind}.partial{own}.npz"
    return store.Partial(path, store.fingerprint(numbered(kind, {**depends_on, **share})))


def lasting(depends_on: Mapping[str, Any]) -> Json:
    """Return dependencies without the numbers of arithmetic, and without what version 0.1.0 had instead."""
    others = {key: value for key, value in depends_on.items() if key not in (_NUMBERS, "version")}
    if isinstance(versions := others.get("versions"), Mapping):
        others["versions"] = {name: value for name, value in versions.items() if name != "inc-mp-plugin"}
    return others


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Say in one line what differs between two sets of dependencies; empty if nothing does.

    Example:
        >>> changes({"samples": 64, "model": "x"}, {"samples": 32, "model": "x"})
        'samples was 64, is 32'
        >>> changes({"serving": {"kv_cache": "bf16"}}, {"serving": {"kv_cache": "fp8"}})
        'serving.kv_cache was bf16, is fp8'
        >>> changes({}, {"arithmetic": {"plan": 2}})
        'made by an older version of this stage'
    """
    return "; ".join([*_other_arithmetic(before, now), *_differences(lasting(before), lasting(now))])


def _other_arithmetic(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    numbers = before.get(_NUMBERS, {})
    steps = {number - numbers.get(kind, 1) for kind, number in now.get(_NUMBERS, {}).items()} - {0}
    ages = ["an older" if step > 0 else "a newer" for step in sorted(steps, reverse=True)]
    return [f"made by {age} version of this stage" for age in dict.fromkeys(ages)]


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
            yield f"{key} was {_in_words(old)}, is {_in_words(new)}"


def _in_words(value: Any) -> str:
    if value is None:
        return "not given"
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
