"""The selection of modules by INC: its own code, with any device's table, on any machine."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from typing import Any

from inc_mp_plugin.core.errors import InputError, SelectionError, few
from inc_mp_plugin.inc.backend import device_table, picked_by_inc

Lists = dict[str, dict[str, list[str]]]

_ALIASES = {"whitelist": "allowlist", "blacklist": "blocklist"}


def selected(modules: Mapping[str, str], config: Mapping[str, Any], device: str) -> list[str]:
    """List the names of the modules that INC would quantize, decided by INC's own `should_quantize`.

    Args:
        modules: {name: class name}.
        config: the content of an INC FP8 JSON.
        device: whose table of supported classes counts, "hpu" or "cpu".

    Raises:
        InputError: a pattern is not a regular expression, or the lists are malformed.
    """
    dynamic = str(config.get("dynamic_quantization", False)).lower() == "true"
    settings = {**pattern_lists(config), "dynamic_quantization": dynamic}
    return picked_by_inc(modules, settings, device_table(device))


def quantizable(modules: Mapping[str, str], device: str) -> list[str]:
    """List the names of the modules that INC could quantize on a device, "hpu" or "cpu"."""
    table = device_table(device)
    return [name for name, kind in modules.items() if kind in table]


def compare_selection(planned: set[str], picked: set[str], tree: Mapping[str, str], target: str) -> None:
    """Refuse a file with which INC would not do exactly what was planned.

    Args:
        planned: names of the modules of the plan.
        picked: names of the modules that INC would quantize.
        tree: the consumer's modules, {name: class}.
        target: name of the consumer, for the message.

    Raises:
        SelectionError: what it would leave out, and what it would add.
    """
    missing, extra = sorted(planned - picked), sorted(picked - planned)
    parts = []
    if missing:
        kinds = sorted({tree.get(name, "not in the model") for name in missing})
        parts.append(f"INC would not quantize {few(missing)} (class {', '.join(kinds)})")
    if extra:
        parts.append(f"INC would also quantize {few(extra)}")
    if parts:
        message = f"no {target} file was made: {'; '.join(parts)}"
        raise SelectionError(message)


def pattern_lists(config: Mapping[str, Any]) -> Lists:
    """Return the allow and block lists of a configuration, with INC's defaults and old key names resolved.

    Raises:
        InputError: a list is malformed, or a name in it is not a regular expression.
    """
    lists: Lists = {
        "allowlist": {"names": [], "types": []},
        "blocklist": {"names": [], "types": []},
    }
    for key, value in config.items():
        name = _ALIASES.get(key, key)
        if name not in lists:
            continue
        if not isinstance(value, dict) or not all(
            isinstance(value.get(part, []), (list, tuple)) for part in ("names", "types")
        ):
            message = f'{key} is {value!r}; it must be {{"names": [...], "types": [...]}}'
            raise InputError(message)
        lists[name].update({part: list(copy.deepcopy(value[part])) for part in value})
    faults = [
        f"{name}.names holds {pattern!r}, which is not a regular expression: {fault}"
        for name, parts in lists.items()
        for pattern in parts["names"]
        if (fault := _pattern_fault(pattern))
    ]
    if faults:
        raise InputError("\n".join(faults))
    return lists


def _pattern_fault(pattern: Any) -> str:
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        return str(error)
    return ""
