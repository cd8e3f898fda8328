"""Modules that run an op in a lower format: INC's on a CPU and a Gaudi, torch's FP8 product on CUDA."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import TimedDevice
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import switchable
from inc_mp_plugin.inc.mixed_precision import half_precision_switch
from inc_mp_plugin.model.experts import expose_experts
from inc_mp_plugin.model.float8 import float8_switch
from inc_mp_plugin.targets import CPU_BF16, CPU_QDQ
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.target import Target
from inc_mp_plugin.targets.timed import CUDA_FP8, TIMED_ON_GAUDI, runnable_kinds

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.switch import Switch


def switch_to_time(
    model: nn.Module,
    graph: Graph,
    ops: Collection[str],
    *,
    base: str,
    lower: str,
    device: TimedDevice,
    batches: Iterable[Batch],
) -> Switch:
    """Make a switch with both modules of every op whose time in a lower format can be measured on a device.

    Args:
        model: on the device; on a Gaudi, INC changes it for good.
        graph: from `capture`.
        ops: those that may leave the base format.
        base: the base format.
        lower: the lower format.
        device: "cpu", "cuda" or "hpu".
        batches: calibration batches on the device, for scales.
    """
    kinds = runnable_kinds(device, lower)
    runnable = [op.name for op in graph.ops if op.name in ops and op.kind in kinds]
    if device == "cuda" and lower == CUDA_FP8:
        expose_experts(model)
        return float8_switch(model, runnable, batches)
    return inc_switch(model, graph, runnable, base=base, lower=lower, batches=batches, target=TIMED_ON_GAUDI)


def inc_switch(
    model: nn.Module,
    graph: Graph,
    ops: Collection[str],
    *,
    base: str,
    lower: str,
    batches: Iterable[Batch],
    target: Target = CPU_QDQ,
    scale_method: str | None = None,
) -> Switch:
    """Make a switch with both modules of every op, as INC gives them on this machine.

    They are emulated where INC emulates.

    Args:
        model: in its base format; on a Gaudi, INC changes it for good.
        graph: from `capture`.
        ops: those that may leave the base format.
        base: the base format.
        lower: the lower format.
        batches: calibration batches, for scales.
        target: whose modules, settings and scale method INC uses.
        scale_method: how INC chooses its scales; the target's default if None.
    """
    expose_experts(model)
    if lower in CPU_BF16.formats:
        return half_precision_switch(model, dict.fromkeys(ops, lower))
    formats = {op.name: lower if op.name in ops else base for op in graph.ops}
    config = config_of(base, formats, target, Captured.of(graph), scale_method=scale_method)
    return switchable(model, config, lower, batches)
