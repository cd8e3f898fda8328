"""Shares of the allowance of a plan: what each op takes of it."""

from __future__ import annotations

import math

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.plan import Plan


def allowance(plan: Plan, costs: Costs) -> float:
    """Return what the threshold allows, or what the plan is predicted to cost without one: KL or loss MSE."""
    if plan.constraint == "kl" or costs.loss is None:
        return (plan.predicted_kl if plan.kl is None else plan.correction * plan.kl) or 0.0
    return plan.loss_budget or 0.0


def budget_shares(plan: Plan, costs: Costs) -> tuple[dict[str, float], float]:
    """Return the part of its allowance that each lowered op takes, in percent, and that of an FP8 KV cache.

    The allowance is that of the threshold, or what the plan is predicted to cost without one. Of a loss MSE
    D + S^2, an op takes d + S s, with s its own shift of the mean loss: these parts add up to the whole.
    """
    lowered = plan.lowered
    model = costs.by(plan.constraint)
    prices = {name: model.costs(name) for name in set(lowered.values())}
    parts = {op: prices[name][op] for op, name in lowered.items()}
    cache = model.cache_cost
    losses = costs.loss
    budget = allowance(plan, costs)
    if plan.constraint == "loss" and losses is not None:
        shifts = {name: losses.shifts(name) for name in prices}
        whole = math.fsum([losses.cache_shift, *(shifts[name][op] for op, name in lowered.items())])
        parts = {op: part + whole * shifts[lowered[op]][op] for op, part in parts.items()}
        cache += whole * losses.cache_shift
    if not budget:
        return dict.fromkeys(parts, 0.0), 0.0
    return {op: 100.0 * part / budget for op, part in parts.items()}, 100.0 * cache / budget
