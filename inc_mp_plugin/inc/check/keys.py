"""Checking the keys and values of an INC FP8 file, its lists aside."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from inc_mp_plugin.core.errors import unknown
from inc_mp_plugin.core.plan import VALUE_METHODS
from inc_mp_plugin.inc.backend import refused_values
from inc_mp_plugin.inc.keys import NAME, inc_keys

_MODES = ("MEASURE", "QUANTIZE", "LOAD", "AUTO")


def is_measuring(config: Mapping[str, Any]) -> bool:
    """Tell if a file lets INC measure, so that nothing runs in FP8."""
    return str(config.get("mode", "")).upper() == "MEASURE"


def check_values(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Check the keys and values of a file: list what to know about them, and what is wrong with them.

    Args:
        config: the content of an INC FP8 JSON.

    Returns:
        Remarks and faults, one line each.
    """
    known = inc_keys()
    notes, faults = [], [*_mode(config), *_others(config)]
    for key in sorted(config.keys() - known - {"strategy", NAME}):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            faults.append(f"INC ignores the key {key!r}; did you mean {near[0]!r}?")
        else:
            notes.append(f"INC ignores the key {key!r}.")
    if str(config.get("mode")).upper() == "AUTO":
        notes.append("note: mode AUTO is for scripts that prepare and convert; optimum-habana does nothing.")
    if NAME in config:
        notes.append(f"{NAME!r} is the plugin's: INC stops at it if the plugin is not registered.")
    return notes, faults


def _mode(config: Mapping[str, Any]) -> Iterator[str]:
    mode = config.get("mode")
    if mode is None:
        yield (
            "mode is missing: INC then takes AUTO, with which optimum-habana silently does nothing; write "
            '"mode": "QUANTIZE"'
        )
    elif str(mode).upper() not in _MODES:
        yield unknown("mode", str(mode), _MODES)
    elif str(mode) != str(mode).upper():
        yield (
            f"mode is {mode!r}: optimum-habana compares it with upper case and silently does nothing, "
            "vLLM stops"
        )


def _others(config: Mapping[str, Any]) -> Iterator[str]:
    path = config.get("dump_stats_path")
    if path is not None and "/" not in str(path):
        yield f"dump_stats_path is {path!r}: INC fails unless it has a folder, as './hqt_output/measure'"
    for key, allowed in refused_values(config).items():
        if key != "mode":  # AUTO among others is no mode of the parser's, but of INC's scripts
            yield unknown(key, str(config[key]), allowed)
    for old, new in (("whitelist", "allowlist"), ("blacklist", "blocklist")):
        if old in config and new in config:
            yield f"{old} and {new} are one key to INC, and only the later one counts; unite them"
    strategy = config.get("strategy")
    if strategy in (NAME, *VALUE_METHODS) and NAME not in config:
        yield (
            f'"strategy": "{strategy}" is of the plugin: without it INC ignores the key and quantizes '
            f'everything. Write the nested form, at which INC then stops: "{NAME}": {{"tau": 0.01}}'
        )
