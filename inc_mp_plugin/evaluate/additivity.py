"""Additivity of time: over groups, times should add up; within a group they need not (section 2.3.1)."""

from __future__ import annotations

import math

from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.timings import TimedGroup


def timed_groups(gains: Gains, graph: Graph) -> tuple[TimedGroup, ...]:
    """Compare measured configurations with the sum over their ops measured alone, in seconds (figure 1).

    Only groups that were measured themselves count, and only configurations that lower two ops or more.
    """
    timed = []
    for group in gains.groups:
        if group.measured_on or len(group.ops) < 2:
            continue
        lowered = [
            tuple((op, f) for op, f in zip(group.ops, configuration, strict=True) if f != gains.base)
            for configuration in group.configurations
        ]
        alone = {pairs[0]: gain for pairs, gain in zip(lowered, group.gain, strict=True) if len(pairs) == 1}
        for pairs, gain, stderr in zip(lowered, group.gain, group.stderr, strict=True):
            if len(pairs) > 1 and alone.keys() >= set(pairs):
                ops = tuple(op for op, _ in pairs)
                macs = sum(graph.by_name[op].macs for op in ops)
                timed.append(TimedGroup(ops, gain, stderr, math.fsum(alone[pair] for pair in pairs), macs))
    return tuple(timed)
