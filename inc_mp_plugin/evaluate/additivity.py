"""Whether time adds up: over groups it should, over the ops of a group it need not (section 2.3.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from inc_mp_plugin.measurements import TimedGroup
from inc_mp_plugin.plan import Gains, Graph, GroupGains


def predicted_gain(gains: Gains, formats: Mapping[str, str]) -> tuple[float, float] | None:
    """Add the gains of a plan's groups up (eq. 7), with the standard error of the sum.

    Groups that share one measurement share its error too, so their errors add up as they are; those of
    different measurements add up in squares.

    Args:
        gains: measured.
        formats: of every op; an op that is missing is in the base format.

    Returns:
        Gain and standard error; None if a configuration of the plan was not measured.

    Example:
        >>> twice = ((("bf16",), ("fp8_e4m3",)), (0.0, 3.0), (0.0, 0.5))
        >>> groups = (GroupGains(("a",), *twice), GroupGains(("b",), *twice, ("a",)))
        >>> gains = Gains("empirical_time", "s", "measured", "bf16", groups)
        >>> predicted_gain(gains, {"a": "fp8_e4m3", "b": "fp8_e4m3"})
        (6.0, 1.0)
    """
    total: list[float] = []
    errors: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
    for group in gains.groups:
        chosen = tuple(formats.get(op, gains.base) for op in group.ops)
        if chosen not in group.configurations:
            return None
        place = group.configurations.index(chosen)
        total.append(group.gain[place])
        measured = (group.measured_on or group.ops, chosen)
        errors[measured] = errors.get(measured, 0.0) + group.stderr[place]
    return math.fsum(total), math.hypot(*errors.values())


def timed_groups(gains: Gains, graph: Graph) -> tuple[TimedGroup, ...]:
    """Compare measured configurations with the sum over their ops measured alone (figure 1).

    Of every group that was measured itself, and of its configurations that lower two ops or more.
    """
    found = []
    for group in gains.groups:
        if group.measured_on or len(group.ops) < 2:
            continue
        alone = _gains_alone(group, gains.base)
        for configuration, gain, stderr in zip(group.configurations, group.gain, group.stderr, strict=True):
            lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != gains.base]
            if len(lowered) > 1 and all(one in alone for one in lowered):
                quantized = tuple(op for op, _ in lowered)
                macs = sum(graph.by_name[op].macs for op in quantized)
                total = math.fsum(alone[one] for one in lowered)
                found.append(TimedGroup(quantized, gain, stderr, total, macs))
    return tuple(found)


def _gains_alone(group: GroupGains, base: str) -> dict[tuple[str, str], float]:
    """Gain of each op in each format, with the rest of the group in the base format."""
    alone = {}
    for configuration, gain in zip(group.configurations, group.gain, strict=True):
        lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != base]
        if len(lowered) == 1:
            alone[lowered[0]] = gain
    return alone
