"""Which modules run an op in a lower format: INC's on a CPU and a Gaudi, torch's FP8 product on CUDA."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import switchable
from inc_mp_plugin.inc.mixed_precision import half_precision_switch
from inc_mp_plugin.model.experts import expose_experts
from inc_mp_plugin.model.float8 import float8_switch
from inc_mp_plugin.targets import CPU_BF16, CPU_QDQ
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.target import Target
from inc_mp_plugin.targets.timed import TIMED_ON_GAUDI, runnable_kinds

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
    low: str,
    device: str,
    batches: Iterable[Batch],
) -> Switch:
    """Make a switch with both modules of every op whose time in `low` can be measured on a device.

    Args:
        model: on the device; on a Gaudi, INC changes it for good.
        graph: from `capture`.
        ops: those that may leave the base format.
        base: the base format.
        low: the lower one.
        device: "cpu", "cuda" or "hpu".
        batches: calibration batches on the device, for scales.
    """
    kinds = runnable_kinds(device, low)
    able = [op.name for op in graph.ops if op.name in ops and op.kind in kinds]
    expose_experts(model)
    if low in CPU_BF16.formats:
        return half_precision_switch(model, dict.fromkeys(able, low))
    if device == "cuda":
        return float8_switch(model, able, batches)
    return _through_inc(model, graph, able, base, low, TIMED_ON_GAUDI, batches)


def switch_to_validate(
    model: nn.Module,
    graph: Graph,
    ops: Collection[str],
    *,
    base: str,
    low: str,
    batches: Iterable[Batch],
    scale_method: str | None = None,
) -> Switch:
    """Make a switch with both modules of every op, as INC gives them on this machine.

    They are emulated where INC emulates.

    Args:
        model: as in `switch_to_time`.
        graph: from `capture`.
        ops: those that may leave the base format.
        base: the base format.
        low: the lower one.
        batches: calibration batches, for scales.
        scale_method: how INC chooses its scales; the default of "cpu-qdq" if None.
    """
    expose_experts(model)
    if low in CPU_BF16.formats:
        return half_precision_switch(model, dict.fromkeys(ops, low))
    return _through_inc(model, graph, ops, base, low, CPU_QDQ, batches, scale_method)


def _through_inc(
    model: nn.Module,
    graph: Graph,
    ops: Collection[str],
    base: str,
    low: str,
    target: Target,
    batches: Iterable[Batch],
    scale_method: str | None = None,
) -> Switch:
    formats = {op.name: low if op.name in ops else base for op in graph.ops}
    config = config_of(base, formats, target, Captured.of(graph), scale_method=scale_method)
    return switchable(model, config, low, batches)
