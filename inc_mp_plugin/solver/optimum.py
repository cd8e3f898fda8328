"""The best choice under the thresholds: of the loss MSE, of the KL divergence, or of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.solver.highs import Status
from inc_mp_plugin.solver.limits import Limits
from inc_mp_plugin.solver.milp import Candidate, Choice, choose
from inc_mp_plugin.solver.program import Option, Program
from inc_mp_plugin.solver.several_rows import Row, choose_within

_CUTS = 30
_PROVED = 1e-9  # of a gap: sums of floats differ by less

Cost = Callable[[Option], float]


def of_kl(option: Option) -> float:
    """Return the KL divergence of an option."""
    return option.kl


def of_loss(slope: float) -> Cost:
    """Return the cost that bounds a loss MSE from below: its tangent at some shift.

    A loss MSE is D + S^2, with D the sum of d and S that of the shifts. S^2 >= 2 S0 S - S0^2 for every S0, so
    D + 2 S0 S is a cost that adds up, and no choice within the loss budget is lost.

    Args:
        slope: 2 S0.
    """
    return lambda option: option.loss_mse + slope * option.shift


def most_gain(program: Program, limits: Limits) -> Choice:
    """Find the choice of largest gain within all thresholds.

    With one threshold on a sum this is the knapsack of eq. 5 to 7. With two, the optimum under one of both
    is that under both if it keeps to the other, too: it is the optimum of a larger set. Only where it exceeds
    the other, for both, the program is solved with two rows.

    Args:
        program: the priced configurations.
        limits: at least one threshold, which the least of every sum keeps to.

    Raises:
        InputError: a yardstick was not measured.
        SolverError: HiGHS stopped without an answer.
    """
    rows: list[Row] = []
    for yardstick, _ in limits.given():
        if yardstick == "kl":
            choice = choose(program.candidates(of_kl), capacity_of(program, limits, "kl"))
            rows.append(Row(of_kl, capacity_of(program, limits, "kl")))
        else:
            choice, cuts = _within_loss(program, limits)
            rows += cuts
        if not limits.exceeded(program, program.totals(choice.picks)):
            return choice
    return _cut(program, limits, rows, lambda option: option.gain)


def least_cost(program: Program, yardstick: Yardstick, gain: Fraction, limits: Limits) -> Choice:
    """Find the choice of least loss MSE or KL divergence that gains this much, within all thresholds.

    The same knapsack with the roles changed: the value is what is saved, the cost the gain lost. With a shift
    the loss MSE is bounded by tangents; where the choice is that of its own tangent, it is the optimum.

    Args:
        program: the priced configurations.
        yardstick: that is least.
        gain: exactly, in the unit of the gains.
        limits: thresholds; if the choice exceeds that of the other yardstick, the program has two rows.

    Raises:
        InputError: the yardstick was not measured.
        InfeasibleError: no choice gains this much within the thresholds.
        SolverError: HiGHS stopped without an answer.
    """
    program.costs.by(yardstick)
    choice, shift = _least(program, yardstick, gain)
    exceeded = limits.exceeded(program, program.totals(choice.picks))
    others = [other for other in exceeded if other != yardstick]
    if not others:
        return choice
    rows = [Row(lambda option: -option.gain, -gain)]
    if "kl" in others:
        rows.append(Row(of_kl, capacity_of(program, limits, "kl")))
    else:
        rows.append(tangent(program, limits, program.least_totals.shift))
    only = Limits(limits.tau if "loss" in others else None, limits.kl if "kl" in others else None)
    cost = of_kl if yardstick == "kl" else of_loss(_slope(program, shift))
    choice = _cut(program, only.corrected(limits.correction), rows, lambda option: -cost(option))
    return choice if yardstick == "kl" else _with_gap(program, choice, choice.picks, shift)


def _least(program: Program, yardstick: Yardstick, gain: Fraction) -> tuple[Choice, float]:
    """Find the choice of least cost that gains this much, and the shift of its last tangent."""
    choice, shift = _least_of(program, of_kl if yardstick == "kl" else of_loss(0.0), gain), 0.0
    for _ in range(_CUTS if yardstick == "loss" else 0):
        totals = program.totals(choice.picks)
        if not totals.shift:
            break
        shift = totals.shift
        other = _least_of(program, of_loss(_slope(program, shift)), gain)
        checked = _with_gap(program, choice, other.picks, shift)
        better = program.predicted(program.totals(other.picks), "loss") < program.predicted(totals, "loss")
        if not checked.gap or not better:
            return checked, shift
        choice = other
    return choice, shift


def _with_gap(program: Program, choice: Choice, least: Sequence[int], shift: float) -> Choice:
    """Tell how far a choice may be from the least loss MSE: that of the least choice on a tangent.

    Args:
        program: the priced configurations.
        choice: to be judged.
        least: picks of the choice that is least on the tangent.
        shift: of the tangent.
    """
    value = program.predicted(program.totals(choice.picks), "loss")
    bound = _tangent_value(program, least, shift)
    if bound >= value * (1 - _PROVED):  # nothing is below the choice
        return replace(choice, gap=0.0)
    return replace(choice, status=Status.CLOSE, gap=1.0 - bound / value)


def _least_of(program: Program, cost: Cost, gain: Fraction) -> Choice:
    return choose([[Candidate(-cost(o), -o.gain) for o in group] for group in program.groups], -gain)


def _tangent_value(program: Program, picks: Sequence[int], shift: float) -> float:
    """Bound the loss MSE of a choice from below, by the tangent at a shift."""
    totals, loss = program.totals(picks), program.costs.loss
    if loss is None:
        return 0.0
    at, own = shift + loss.cache_shift, totals.shift + loss.cache_shift
    return totals.loss_mse + loss.cache_cost + 2.0 * at * own - at**2


def _within_loss(program: Program, limits: Limits) -> tuple[Choice, list[Row]]:
    """Find the choice of largest gain within the loss budget, by tangents; return these, too.

    The optimum under a tangent is the optimum if it is within the budget itself: no choice that is within
    the budget is excluded by a tangent.
    """
    rows = [tangent(program, limits, _first_shift(program, limits))]
    only = replace(limits, kl=None)
    for _ in range(4):
        choice = choose(program.candidates(rows[-1].cost), rows[-1].capacity)
        totals = program.totals(choice.picks)
        if not only.exceeded(program, totals):
            return choice, rows
        rows.append(tangent(program, limits, totals.shift))
    return _cut(program, only, rows, lambda option: option.gain), rows


def _cut(program: Program, limits: Limits, rows: Sequence[Row], value: Cost) -> Choice:
    """Solve with several rows, and with one more tangent as long as the loss budget is exceeded."""
    rows = list(rows)
    for _ in range(_CUTS):
        choice = choose_within(program.groups, rows, value)
        totals = program.totals(choice.picks)
        if not limits.exceeded(program, totals) or choice.status is Status.TIME_LIMIT:
            break
        rows.append(tangent(program, limits, totals.shift))
    return choice


def capacity_of(program: Program, limits: Limits, yardstick: Yardstick) -> Fraction:
    """Return what the KV cache leaves of a budget, exactly.

    Args:
        program: the priced configurations.
        limits: that hold the yardstick's threshold.
        yardstick: of the budget.
    """
    budget, cache = limits.budget(program.costs, yardstick), program.costs.by(yardstick).cache_cost
    left = budget - cache
    while left + cache > budget:  # by rounding errors of the larger of both
        left -= math.ulp(max(abs(left), cache))
    return Fraction(left) if cache else Fraction(budget)


def tangent(program: Program, limits: Limits, shift: float) -> Row:
    """Return the row of a tangent: D + 2 S0 S <= budget + S0^2, with the KV cache in S0.

    Args:
        program: the priced configurations.
        limits: that hold a tau.
        shift: S0, without the KV cache.
    """
    slope = _slope(program, shift)
    whole = Fraction(slope) / 2
    cached = Fraction(0.0 if program.costs.loss is None else program.costs.loss.cache_shift)
    capacity = capacity_of(program, limits, "loss") + whole**2 - 2 * whole * cached
    return Row(of_loss(slope), capacity)


def _slope(program: Program, shift: float) -> float:
    loss = program.costs.loss
    return 0.0 if loss is None else 2.0 * (shift + loss.cache_shift)


def _first_shift(program: Program, limits: Limits) -> float:
    """Estimate the shift of the optimum: that of the same part of everything that fits the loss budget."""
    totals = program.totals([max(range(len(g)), key=lambda i: g[i].gain) for g in program.groups])
    ratio = totals.shift / totals.loss_mse if totals.loss_mse else 0.0
    budget = max(float(capacity_of(program, limits, "loss")), 0.0)
    return ratio * 2.0 * budget / (1.0 + math.sqrt(1.0 + 4.0 * ratio**2 * budget))
