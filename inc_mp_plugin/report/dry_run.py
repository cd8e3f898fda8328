"""A dry run in words."""

from __future__ import annotations

from collections import Counter

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.text import amount


def dry_run_lines(graph: Graph, demands: Demands, gains: Gains, plan: Plan) -> list[str]:
    """Say what a recipe comes to without a loss.

    Args:
        graph: from `capture`.
        demands: of the consumers of the plan: ties, and ops that are kept or lowered.
        gains: of every group, for one objective.
        plan: that of the largest gain.
    """
    lines = [
        f"{len(graph.ops)} ops in {len(graph.groups)} groups; {len(graph.unsupported)} products are no ops",
        *(f"tied, {count} times: {why}" for why, count in Counter(t.why for t in demands.ties).items()),
        *(f"in {gains.base}, {n} ops: {why}" for why, n in Counter(demands.kept.values()).items()),
        *(f"in FP8, {n} ops: {why}" for why, n in Counter(demands.lowered.values()).items()),
        f"largest gain ({gains.objective}, {gains.source}): {amount(plan.gain, gains.unit)} "
        f"with {len(plan.quantized)} ops lowered, of {amount(gains.largest, gains.unit)} without ties",
    ]
    return [line[:1].upper() + line[1:] for line in lines]
