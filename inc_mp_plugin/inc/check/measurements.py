"""Inputs of a check: the modules of a model, INC's measurements, and the file itself."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import QUANTIZABLE
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.model.loading import empty_model, load_config
from inc_mp_plugin.model.modules import class_names
from inc_mp_plugin.targets.layout import Captured, Layout

if TYPE_CHECKING:
    from torch import nn


def load_captured(path: Path | None, model: str | None) -> Captured:
    """Load the facts about a model's modules from a JSON file such as graph.json, or from the model itself.

    The modules are {name: class}.

    Raises:
        InputError: not exactly one of both is given, or it cannot be read.
    """
    if (path is None) == (model is None):
        message = "give either --modules FILE.json or --model NAME"
        raise InputError(message)
    if path is None:
        return _captured_of(str(model))
    content = load_json(path)
    modules = content.get("modules", content)
    if not isinstance(modules, dict) or not all(isinstance(v, str) for v in modules.values()):
        message = f'{path} holds no modules; it must be {{"modules": {{name: class, ...}}}}'
        raise InputError(message)
    tied = frozenset(op["name"] for op in content.get("ops", []) if op["tied"])
    return Captured(_ops(modules), modules, tied)


def _captured_of(name_or_path: str) -> Captured:
    from inc_mp_plugin.model.attention import expose_bgemms
    from inc_mp_plugin.model.experts import expose_experts

    config = load_config(name_or_path, {}, trust_remote_code=False)
    model = empty_model(config, "bf16", trust_remote_code=False)
    expose_bgemms(model)
    expose_experts(model)
    modules = class_names(model)
    tied = {"lm_head"} if getattr(config, "tie_word_embeddings", False) else set[str]()
    routers = set(_linear_routers(model))  # of transformers 4; later ones are classes of their own
    ops = tuple(name for name in _ops(modules) if name not in routers)
    return Captured(ops, modules, frozenset(tied & modules.keys()))


def _linear_routers(model: nn.Module) -> Iterator[str]:
    from torch import nn

    for owner, module in model.named_modules():
        experts: Any = getattr(module, "experts", None)
        for name, child in module.named_children() if isinstance(experts, nn.ModuleList) else ():
            if getattr(child, "out_features", None) == len(experts):
                yield f"{owner}.{name}"


def _ops(modules: dict[str, str]) -> tuple[str, ...]:
    return tuple(name for name, kind in modules.items() if kind in QUANTIZABLE)


def unmeasured(config: dict[str, Any], layout: Layout, device: str, measurements: Path) -> list[str]:
    """Report modules that a file selects and that INC's measurement lacks, or has a useless value of.

    INC stops at the first call of a module without a measurement; most often the measurement ran with
    another attention than the file is for. INC takes a largest value of 0 or NaN without a word.

    Args:
        config: the content of an INC FP8 JSON.
        layout: the consumer's modules.
        device: "hpu" or "cpu".
        measurements: the file `..._hooks_maxabs.json` that INC wrote.

    Raises:
        InputError: the measurements cannot be read.
    """
    nodes = load_json(measurements).get("Nodes")
    if not isinstance(nodes, dict):
        message = f"{measurements} holds no measurements of INC's; give its file ..._hooks_maxabs.json"
        raise InputError(message)
    picked = [selected(tree, config, device) for tree in layout.trees]
    fewest = min(([name for name in names if name not in nodes] for names in picked), key=len)
    faults = []
    if fewest:
        faults.append(
            f"{len(fewest)} modules are selected but not in {measurements.name}, such as {fewest[0]}: the "
            "measurement ran another attention, or never reached them; INC stops at their first call. "
            "Measure again the way the file is used"
        )
    measured = dict.fromkeys(name for names in picked for name in names if name in nodes)
    unusable = [name for name in measured if not all(map(_usable, _numbers(nodes[name])))]
    if unusable:
        faults.append(
            f"{len(unusable)} modules are selected whose largest value in {measurements.name} is 0 or no "
            f"number, such as {unusable[0]}: their weight is zeros, no token reached them, or the model "
            "overflowed; INC would give them a useless scale without a word. Block them, or measure with "
            "more samples"
        )
    return faults


def _numbers(node: Any) -> Iterator[float]:
    """Yield all numbers of a measured node, however deeply they are nested."""
    if isinstance(node, dict):
        node = list(node.values())
    if isinstance(node, list):
        for part in node:
            yield from _numbers(part)
    elif isinstance(node, int | float):
        yield float(node)


def _usable(maximum: float) -> bool:
    return math.isfinite(maximum) and maximum > 0


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        InputError: it is missing, or something else.
    """
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
