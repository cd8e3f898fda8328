"""A plan with all that explains it: shares, prices and margins of its ops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.margins import Corner, Margins
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.shares import allowance, budget_shares
from inc_mp_plugin.report.staying import Stay
from inc_mp_plugin.report.text import NO_THRESHOLD, threshold


@dataclass(frozen=True)
class Explained:
    """A plan with all that says why its ops are where they are; `costs` are those of all ops with a price."""

    plan: Plan
    gains: Gains
    costs: Costs
    graph: Graph
    demands: Demands
    stays: Mapping[str, Stay]
    margins: Margins

    @cached_property
    def shares(self) -> Mapping[str, float]:
        """Share of the allowance that each op takes, or would take, in percent."""
        stays = {op: stay.percent for op, stay in self.stays.items()}
        return stays | budget_shares(self.plan, self.costs)[0]

    @cached_property
    def per_percent(self) -> float:
        """Cost that is 1 % of the allowance, in loss MSE or nats per token."""
        return allowance(self.plan, self.costs) / 100.0

    @cached_property
    def lower_format(self) -> str:
        """The format that ops are lowered to; the first of the plan's if there are several."""
        names = (name for group in self.gains.groups for c in group.configurations for name in c)
        lower = (name for name in (*self.plan.lowered.values(), *names) if name != self.plan.base)
        return next(lower, self.plan.base)

    @cached_property
    def prices(self) -> Mapping[str, Mapping[str, float]]:
        """Prices by the plan's yardstick, in loss MSE or nats per token, {format: {op: price}}."""
        model = self.costs.by(self.plan.constraint)
        return {name: model.costs(name) for name in {self.lower_format, *self.plan.lowered.values()}}

    def price(self, op: str) -> float:
        """Return the price of an op in its lower format; NaN where no sample reached it."""
        name = self.plan.formats[op] if self.is_lowered(op) else self.lower_format
        return self.prices[name].get(op, math.nan)

    def is_lowered(self, op: str) -> bool:
        """Tell if the plan has an op in a lower format."""
        return self.plan.formats.get(op, self.plan.base) != self.plan.base

    def at(self, corner: Corner) -> str:
        """Name a corner of the frontier by the key that was asked for, and by its gain."""
        plan, losses = self.plan, self.costs.loss
        share = corner.gain / plan.largest_gain if plan.largest_gain else 0.0
        if threshold(plan) == NO_THRESHOLD:
            return f"gain_fraction {math.floor(1e6 * share) / 1e6:g}"
        cost = corner.cost / plan.correction
        if plan.constraint == "kl" or losses is None:
            return f"kl {rounded_up(cost, 6)} ({100 * share:.1f} % of the largest gain)"
        return (
            f"tau {rounded_up(math.sqrt(cost / losses.loss_ms), 6)} ({100 * share:.1f} % of the largest gain)"
        )
