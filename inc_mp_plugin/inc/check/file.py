"""`inc-mp check`: a file of the user's, in the hands of a consumer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.check.check import Report, check_config
from inc_mp_plugin.inc.check.measurements import load_json, unmeasured
from inc_mp_plugin.inc.selection import pattern_lists
from inc_mp_plugin.targets import OPTIMUM_HABANA, VLLM_GAUDI, get_target
from inc_mp_plugin.targets.layout import Captured, Layout


@dataclass(frozen=True, slots=True)
class KnownServing:
    """Settings of how a model is served, as far as they are known; a None is not compared with the file."""

    kv_cache: str | None = None
    attention: str | None = None
    reuse_cache: bool = False

    @property
    def complete(self) -> Serving:
        """The same settings, with the default of each that is not known."""
        return Serving(**{key: value for key, value in asdict(self).items() if value})


def check_file(
    path: Path,
    captured: Captured,
    target: str | None,
    serving: KnownServing,
    *,
    measurements: Path | None,
    device: str | None,
) -> Report:
    """Say what INC would select with a file, and what about that is suspicious.

    Args:
        path: an INC FP8 JSON file.
        captured: the model.
        target: whose module names and rules count; the model's own names, and no rules, if None.
        serving: how the target serves the model.
        measurements: what INC measured, which must hold what is selected.
        device: whose table of classes counts; the target's, or "hpu", if None.

    Raises:
        InputError: a file cannot be read, or a pattern is no regular expression.
    """
    layout, where, complete = Layout((captured.modules,), {}), device or "hpu", serving.complete
    if target is not None:
        consumer = get_target(target)
        if consumer.device is None:
            message = f"target {target} reads no file of INC's, but a checkpoint: inc-mp check MODEL"
            raise InputError(message)
        if device not in (None, consumer.device):
            message = f"target {target} runs on {consumer.device}, not on {device}; leave --device out"
            raise InputError(message)
        layout, where = consumer.lay_out(captured, complete), consumer.device
        layout = layout if serving.attention else replace(layout, resting={})
    config = load_json(path)
    try:
        report = check_config(config, layout, where, serving.kv_cache)
    except InputError as error:
        raise InputError("\n".join(f"{path}: {line}" for line in str(error).splitlines())) from error
    missing = [] if measurements is None else unmeasured(config, layout, where, measurements)
    names = _names_of_others(config, captured, layout, complete, target)
    types = _types_of_others(config, captured, layout, complete, target)
    faults = tuple(f"{path}: {fault}" for fault in (*report.faults, *names, *types, *missing))
    return replace(report, faults=faults)


def _names_of_others(
    config: dict[str, Any], captured: Captured, layout: Layout, serving: Serving, target: str | None
) -> Iterator[str]:
    """Report patterns that match no module here, but modules of another consumer that run an op."""
    here = _classes(layout)
    patterns = {pattern for parts in pattern_lists(config).values() for pattern in parts["names"]}
    foreign = sorted(pattern for pattern in patterns if not any(re.search(pattern, name) for name in here))
    for consumer in (VLLM_GAUDI, OPTIMUM_HABANA):
        places = consumer.lay_out(captured, serving).places
        matches = {
            pattern: op
            for pattern in foreign
            for op, modules in places.items()
            if any(re.search(pattern, module) for module in modules)
        }
        for pattern, op in list(matches.items())[:1]:
            if target is None:
                yield f"{pattern!r} is a name of {consumer.name}'s: check with --target {consumer.name}"
            elif op in layout.places:
                module = layout.places[op][0]
                yield f"{pattern!r} is a name of {consumer.name}'s; {target} runs that op in {module}"


def _types_of_others(
    config: dict[str, Any], captured: Captured, layout: Layout, serving: Serving, target: str | None
) -> Iterator[str]:
    """Report classes that no module has here, but modules of another consumer have."""
    here = set(_classes(layout).values())
    for name, parts in pattern_lists(config).items():
        for kind in dict.fromkeys(parts["types"]):
            for consumer in () if kind in here else (VLLM_GAUDI, OPTIMUM_HABANA):
                theirs = consumer.lay_out(captured, serving)
                modules = {module for module, other in _classes(theirs).items() if other == kind}
                if not modules:
                    continue
                fault = f"{name}.types: {kind!r} is a class of {consumer.name}'s"
                if target is None:
                    yield f"{fault}: check with --target {consumer.name}"
                else:
                    same = " and ".join(_counterparts(modules, theirs, layout)) or "no class"
                    yield f"{fault} and names nothing of {target}, which has {same} in its place"


def _counterparts(modules: set[str], theirs: Layout, ours: Layout) -> list[str]:
    """List the classes of our modules that do what these modules of another consumer do."""
    places = [ours.caches] if modules.intersection(theirs.caches) else []
    places += [ours.places.get(op, ()) for op, used in theirs.places.items() if modules.intersection(used)]
    classes = _classes(ours)
    return sorted({classes[module] for place in places for module in place if module in classes})


def _classes(layout: Layout) -> dict[str, str]:
    return {module: kind for tree in layout.trees for module, kind in tree.items()}
