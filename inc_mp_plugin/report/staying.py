"""Why ops stay in the base format: a reason for each, and a table of them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.shares import allowance
from inc_mp_plugin.report.text import percent, split_name

UNREACHED = "no sample reached it"
NO_TARGET = "no target runs it in a lower format"
NO_GAIN = "it gains nothing"
COPIED = "it gains nothing: its weight is used elsewhere, too, and a quantized copy would come on top"
UNKNOWN = "its gain beside the plan was not measured"
COST = "it would cost more than its gain is worth"
TIED = "tied ops would cost more than their gain is worth"


class Stay(NamedTuple):
    """The reason why an op stays, the same in words for this op alone, and its cost in % of the allowance."""

    reason: str
    text: str
    percent: float


def staying(
    plan: Plan,
    gains: Gains,
    costs: Costs,
    graph: Graph,
    *,
    runnable: Collection[str],
    kept: Mapping[str, str],
) -> dict[str, Stay]:
    """Find for each op that a plan leaves in the base format why it stays.

    Costs and gains are what the op, or all ops that are tied to it, would add to the plan.

    Args:
        plan: that leaves the ops.
        gains: of every group, for the objective of the plan.
        costs: of all ops that samples reached.
        graph: of the model.
        runnable: ops that every target can run in a lower format.
        kept: reasons of the consumers why ops stay.
    """
    if all(name == gains.base for group in gains.groups for c in group.configurations for name in c):
        return {}
    added = _Added(plan, gains, costs)
    tied = {op: tie.ops for tie in plan.ties for op in tie.ops if len(tie.ops) > 1}
    stays = {}
    for op in (op for op, format_name in plan.formats.items() if format_name == plan.base):
        together = tied.get(op, (op,))
        price = math.fsum(map(added.price, together)) if set(together) <= set(costs.ops) else 0.0
        known = _without_choice(op, costs, runnable, kept)
        reason = known or added.reason(together, copied=graph.by_name[op].tied)
        gain = added.gain(together)
        text = reason
        if reason in (COST, TIED):
            of = "it" if reason == COST else f"it and {len(together) - 1} tied ops"
            text = f"{of} would take {price:.1f} % of the allowance for {gain:.1f} % of the largest gain"
        stays[op] = Stay(reason, text, added.price(op) if op in costs.ops else 0.0)
    return stays


def _without_choice(op: str, costs: Costs, runnable: Collection[str], kept: Mapping[str, str]) -> str | None:
    if op not in costs.ops:
        return UNREACHED
    if op in kept:
        return kept[op]
    return None if op in runnable else NO_TARGET


class _Added:
    """Costs and gains that more ops would add to a plan, in percent of the allowance and the largest gain."""

    def __init__(self, plan: Plan, gains: Gains, costs: Costs) -> None:
        self._plan, self._allowance = plan, allowance(plan, costs)
        self._group_of = {op: group for group in gains.groups for op in group.ops}
        self._gain_of = {
            group.ops: dict(zip(group.configurations, group.gain, strict=True)) for group in gains.groups
        }
        lower = (name for group in gains.groups for c in group.configurations for name in c)
        self._format = next(name for name in (*plan.lowered.values(), *lower) if name != gains.base)
        losses = costs.loss if plan.constraint == "loss" else None
        self._prices = costs.by(plan.constraint).costs(self._format)
        self._shifts = {} if losses is None else losses.shifts(self._format)
        self._shift = math.fsum(self._shifts[op] for op in plan.lowered if op in self._shifts)

    def price(self, op: str) -> float:
        """Price an op alone: of a loss MSE d + S^2, it adds d + s (2 S + s)."""
        shift = self._shifts.get(op, 0.0)
        return percent(self._prices[op] + shift * (2.0 * self._shift + shift), self._allowance)

    def gain(self, ops: Collection[str]) -> float:
        """Return what ops add to the gain; NaN where the combination was not measured."""
        total = 0.0
        for group in {self._group_of[op].ops for op in ops}:
            now = tuple(self._plan.formats[op] for op in group)
            then = tuple(self._format if op in ops else self._plan.formats[op] for op in group)
            gain_of = self._gain_of[group]
            offered = {op for c in gain_of for op, name in zip(group, c, strict=True) if name == self._format}
            if offered.isdisjoint(ops):
                continue  # such as products of activations, which store nothing: they have no configuration
            total += gain_of.get(then, math.nan) - gain_of.get(now, math.nan)
        return percent(total, self._plan.largest_gain)

    def reason(self, ops: Collection[str], *, copied: bool) -> str:
        """Return why ops stay that consumers could run; `copied` tells of a weight that is used elsewhere."""
        gain = self.gain(ops)
        if math.isnan(gain):
            return UNKNOWN
        if gain <= 0:
            return COPIED if copied else NO_GAIN
        return TIED if len(ops) > 1 else COST


def staying_lines(stays: Mapping[str, Stay], base: str) -> list[str]:
    """Say the same as `staying_table` in a line for each reason.

    Example:
        >>> staying_lines({"h.0.up": Stay(NO_GAIN, "", 1.5), "h.1.up": Stay(NO_GAIN, "", 1.0)}, "bf16")
        ['Stays in bf16: up (2); it gains nothing (2.5 % of the allowance).']
    """
    rows = staying_table(stays, base).rows
    return [f"Stays in {base}: {ops}; {reason} ({cost} % of the allowance)." for reason, ops, _, cost in rows]


def staying_table(stays: Mapping[str, Stay], base: str) -> Table:
    """Make the table of the reasons: how many ops, of which kinds, and what these would cost together."""
    rows = []
    for reason, count in Counter(stay.reason for stay in stays.values()).most_common():
        group = {op: stay for op, stay in stays.items() if stay.reason == reason}
        kinds = Counter(split_name(op)[1] for op in group)
        named = ", ".join(f"{kind} ({times})" if times > 1 else kind for kind, times in kinds.most_common())
        rows.append((reason, named, str(count), f"{math.fsum(stay.percent for stay in group.values()):.1f}"))
    caption = f"Why ops stay in {base}; each one's own reason is on its cell of the map."
    return Table(caption, ("reason", "ops", "number", "cost, % of the allowance"), tuple(rows), left=2)
