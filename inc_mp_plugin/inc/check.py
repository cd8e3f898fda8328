"""Checking an INC FP8 file, hand-written ones included, against a model's modules."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inc_mp_plugin.errors import InputError, unknown
from inc_mp_plugin.inc.selection import pattern_lists, quantizable, selected
from inc_mp_plugin.inc.settings import inc_keys


@dataclass(frozen=True, slots=True)
class Report:
    """What INC would select: `lines` to show, and `faults` that make the file suspicious."""

    lines: tuple[str, ...]
    faults: tuple[str, ...]


def check_config(path: Path, modules: Mapping[str, str], device: str) -> Report:
    """Say what INC would select with a file, and which of its patterns match nothing.

    Raises:
        InputError: the file is missing, not JSON, or a pattern in it is no regular expression.
    """
    if device not in ("hpu", "cpu"):
        raise InputError(unknown("device", device, ("hpu", "cpu")))
    config = _read(path)
    lists = pattern_lists(config)
    possible = quantizable(modules, device)
    chosen = selected(modules, config, device)
    classes = Counter(modules[name] for name in chosen)
    lines = [f"INC would quantize {len(chosen)} of {len(possible)} modules that it could on {device}:"]
    lines += [f"  {count:5d} {kind}" for kind, count in sorted(classes.items())]
    lines += [f"  {name}" for name in chosen]
    faults = []
    for name, parts in lists.items():
        for pattern in parts["names"]:
            if not any(re.search(pattern, module) for module in modules):
                faults.append(f"{name}.names: {pattern!r} matches no module of the model")
        kinds = set(modules.values())
        faults += [
            f"{name}.types: {kind!r} is the class of no module"
            for kind in parts["types"]
            if name == "allowlist" and kind not in kinds
        ]
    known = inc_keys()
    for key in sorted(config.keys() - known):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.8)
        if near:
            faults.append(f"INC ignores the key {key!r}; did you mean {near[0]!r}?")
        else:
            lines.append(f"INC ignores the key {key!r}.")
    if not chosen and lists["blocklist"]["names"] != [".*"]:
        faults.append("the file selects nothing: the model would run without FP8, and INC would not say so")
    return Report(tuple(lines), tuple(f"{path}: {fault}" for fault in faults))


def load_modules(path: Path | None, model: str | None) -> dict[str, str]:
    """Read a model's modules, {name: class}, from a JSON file or from the model itself.

    Raises:
        InputError: not exactly one of both is given, or it cannot be read.
    """
    if (path is None) == (model is None):
        message = "give either --modules FILE.json or --model NAME"
        raise InputError(message)
    if path is not None:
        content = _read(path)
        modules = content.get("modules", content)
        if not isinstance(modules, dict) or not all(isinstance(v, str) for v in modules.values()):
            message = f'{path} holds no modules; it must be {{"modules": {{name: class, ...}}}}'
            raise InputError(message)
        return modules
    return _modules_of(str(model))


def _modules_of(name_or_path: str) -> dict[str, str]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from inc_mp_plugin.attention import expose_bgemms

    try:
        config = AutoConfig.from_pretrained(name_or_path)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        message = f"the model {name_or_path!r} cannot be loaded: {' '.join(str(error).split())[:200]}"
        raise InputError(message) from error
    expose_bgemms(model)
    return {name: type(module).__name__ for name, module in model.named_modules() if name}


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        message = f"{path} does not exist"
        raise InputError(message) from None
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read as JSON: {error}"
        raise InputError(message) from error
    if not isinstance(content, dict):
        message = f"{path} is not a JSON object"
        raise InputError(message)
    return content
