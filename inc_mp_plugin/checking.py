"""`inc-mp check`: a file of the user's, in the hands of a consumer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.inc.check import Report, check_config
from inc_mp_plugin.inc.modules import load_json, unmeasured
from inc_mp_plugin.serving import Serving
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import Captured, Layout


def check_file(
    path: Path,
    captured: Captured,
    target: str | None,
    serving: Serving,
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
    layout, where = Layout((captured.modules,), {}), device or "hpu"
    if target is not None:
        consumer = get_target(target)
        if device not in (None, consumer.device):
            message = f"target {target} runs on {consumer.device}, not on {device}; leave --device out"
            raise InputError(message)
        layout, where = consumer.lay_out(captured, serving), consumer.device
    config = load_json(path)
    report = check_config(config, layout, where)
    missing = [] if measurements is None else unmeasured(config, layout, where, measurements)
    faults = tuple(f"{path}: {fault}" for fault in (*report.faults, *missing))
    return replace(report, faults=faults)
