"""Thresholds in the units of costs, and the errors of those that no plan meets."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import InfeasibleError
from inc_mp_plugin.core.knobs import KEY_OF
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.solver.program import Program, Totals

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Limits:
    """Thresholds of a plan: tau of the normalized RMSE, kl in nats per token; None where not given.

    A `correction` other than 1 multiplies the loss budget tau^2 E[g^2] and the KL divergence alike.
    """

    tau: float | None = None
    kl: float | None = None
    correction: float = 1.0

    def corrected(self, correction: float) -> Limits:
        """Return the same thresholds with another correction."""
        return replace(self, correction=correction)

    def given(self) -> Iterator[tuple[Yardstick, float]]:
        """Yield the yardsticks that have a threshold, with the threshold."""
        if self.tau is not None:
            yield "loss", self.tau
        if self.kl is not None:
            yield "kl", self.kl

    def budget(self, costs: Costs, yardstick: Yardstick) -> float:
        """Return the most that a plan may cost by a yardstick: loss MSE, or nats per token.

        Raises:
            InputError: it was not measured.
        """
        costs.by(yardstick)
        if yardstick == "kl" or costs.loss is None:
            return self.correction * (self.kl or 0.0)
        return self.correction * (self.tau or 0.0) ** 2 * costs.loss.loss_ms

    def exceeded(self, program: Program, totals: Totals) -> list[Yardstick]:
        """List the yardsticks whose threshold a choice exceeds, by more than the rounding of a square."""
        hair = 1.0 + (_ROUNDING if totals.shift else 0.0)
        return [
            yardstick
            for yardstick, _ in self.given()
            if program.predicted(totals, yardstick) > hair * self.budget(program.costs, yardstick)
        ]

    def share(self, costs: Costs, plan: Plan) -> float:
        """Return how much of its budgets a plan takes at the upper end of its intervals, the larger part.

        The budgets are those without the correction.
        """
        parts = []
        for yardstick, _ in self.given():
            interval = plan.interval if yardstick == "loss" else plan.kl_interval
            budget = self.corrected(1.0).budget(costs, yardstick)
            parts.append(math.inf if interval is None else interval.high / budget)
        return max(parts)


def least_threshold(costs: Costs, yardstick: Yardstick, value: float) -> str:
    """Write the least threshold that holds a loss MSE or a KL divergence, rounded up whatever floats do.

    Args:
        costs: that the value was predicted by.
        yardstick: of the value.
        value: the loss MSE, or nats per token.
    """
    if yardstick == "loss" and costs.loss is not None:
        value = math.sqrt(value / costs.loss.loss_ms)
    return rounded_up(value * (1 + 1e-9), 6)


def infeasible(
    program: Program, demands: Demands, *, yardstick: Yardstick, budget: float, value: float, limit: str
) -> InfeasibleError:
    """Make the error of a threshold that is exceeded by the ops and the cache that must be lowered.

    Args:
        program: of gains that keep to the demands.
        demands: of the consumers.
        yardstick: of the threshold.
        budget: what the threshold allows, in the unit of the costs.
        value: the least that can be met, in the same unit.
        limit: the threshold in words, such as "tau 0.1 allows".
    """
    costs, base = program.costs, program.gains.base
    cache = costs.by(yardstick).cache_cost
    fixed = [
        op
        for group, options in zip(program.gains.groups, program.groups, strict=True)
        for place, op in enumerate(group.ops)
        if all(option.configuration[place] != base for option in options)
    ]
    takes = [f"the KV cache in FP8 takes {100.0 * cache / budget:.3g} %"] if cache else []
    if fixed:
        least = program.predicted(program.least_totals, yardstick) - cache
        reasons = "; ".join(sorted({demands.lowered[op] for op in fixed if op in demands.lowered}))
        takes.append(f"{len(fixed)} ops take {100.0 * least / budget:.3g} %{reasons and f' ({reasons})'}")
    key = KEY_OF[yardstick]
    remedy = f"a larger {key}, or kv_cache=bf16" if demands.serving.kv_cache == "fp8" else f"a larger {key}"
    moves = "loss" if yardstick == "loss" else "outputs"
    message = (
        f"what must run in a lower format moves the {moves} by more than {limit}: of the allowance, "
        f"{' and '.join(takes)}; give {remedy}: the least {key} that can be met is "
        f"{least_threshold(costs, yardstick, value)}"
    )
    return InfeasibleError(message)
