"""Whether time adds up: over groups it should, over the ops of a group it need not (section 2.3.1)."""

from __future__ import annotations

import math

from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.core.timings import TimedGroup


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
