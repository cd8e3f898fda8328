"""The best choice under the thresholds: of the loss MSE, of the KL divergence, or of both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

from inc_mp_plugin.core.errors import InfeasibleError
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.solver.highs import Status
from inc_mp_plugin.solver.limits import Limits
from inc_mp_plugin.solver.milp import Candidate, Choice, choose
from inc_mp_plugin.solver.program import Option, Program
from inc_mp_plugin.solver.several_rows import Row, choose_within

_CUTS = 30
_PROVED = 1e-8  # of a loss MSE: what is lower by less counts as equal

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
    the loss MSE is bounded by tangents, and choices are improved until the tangents leave none.

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
    choice = _least_of(program, of_kl if yardstick == "kl" else of_loss(0.0), gain)
    rows = [Row(lambda option: -option.gain, -gain)]
    exceeded = limits.exceeded(program, program.totals(choice.picks))
    if "kl" in exceeded and yardstick == "loss":
        rows.append(Row(of_kl, capacity_of(program, limits, "kl")))
        choice = choose_within(program.groups, rows, lambda option: -option.loss_mse)
    if "loss" in exceeded and yardstick == "kl":
        rows.append(tangent(program, limits, program.least_totals.shift))
        choice = _cut(program, replace(limits, kl=None), rows, lambda option: -option.kl)
    if yardstick == "loss" and program.totals(choice.picks).shift:
        return _least_with_shift(program, rows, choice)
    return choice


def _least_with_shift(program: Program, rows: Sequence[Row], choice: Choice) -> Choice:
    """Find the choice of least loss MSE within the rows, from one to begin with.

    Below the loss MSE of the best choice so far, a tangent at the shift of each choice that was looked at
    excludes that choice. What is left is the improvement, or nothing, which is the proof.
    """
    shifts: list[float] = []
    for _ in range(_CUTS):
        totals = program.totals(choice.picks)
        value = program.predicted(totals, "loss")
        shifts.append(totals.shift)
        budget = Fraction(value * (1.0 - _PROVED))
        try:
            other = _below(program, rows, budget, shifts)
        except InfeasibleError:
            return replace(choice, status=Status.OPTIMAL, gap=0.0)
        if other is None:
            break
        choice = other
    return replace(choice, status=Status.CLOSE)


def _below(program: Program, rows: Sequence[Row], budget: Fraction, shifts: list[float]) -> Choice | None:
    """Find a choice whose loss MSE is within a budget; None if it takes too long.

    Args:
        program: the priced configurations.
        rows: what the choice keeps to beside.
        budget: the most loss MSE.
        shifts: of tangents; those of the choices that exceed the budget are added.

    Raises:
        InfeasibleError: there is none.
    """
    for _ in range(_CUTS):
        cuts = [_tangent_row(program, budget, shift) for shift in shifts]
        choice = choose_within(program.groups, [*rows, *cuts], _saved(cuts[-1].cost))
        totals = program.totals(choice.picks)
        if program.predicted(totals, "loss") <= budget:
            return choice
        if choice.status is Status.TIME_LIMIT:
            break
        shifts.append(totals.shift)
    return None


def _saved(cost: Cost) -> Cost:
    return lambda option: -cost(option)


def _least_of(program: Program, cost: Cost, gain: Fraction) -> Choice:
    return choose([[Candidate(-cost(o), -o.gain) for o in group] for group in program.groups], -gain)


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
    return _tangent_row(program, Fraction(limits.budget(program.costs, "loss")), shift)


def _tangent_row(program: Program, budget: Fraction, shift: float) -> Row:
    """Return the row of a tangent at a shift, for a budget of loss MSE."""
    slope, loss = _slope(program, shift), program.costs.measured_loss
    half, cached = Fraction(slope) / 2, Fraction(loss.cache_shift)
    left = budget - Fraction(loss.cache_cost)
    return Row(of_loss(slope), left + half**2 - 2 * half * cached)


def _slope(program: Program, shift: float) -> float:
    loss = program.costs.loss
    return 0.0 if loss is None else 2.0 * (shift + loss.cache_shift)


def _first_shift(program: Program, limits: Limits) -> float:
    """Estimate the shift of the optimum: that of the same part of everything that fits the loss budget."""
    totals = program.totals([max(range(len(g)), key=lambda i: g[i].gain) for g in program.groups])
    ratio = totals.shift / totals.loss_mse if totals.loss_mse else 0.0
    budget = max(float(capacity_of(program, limits, "loss")), 0.0)
    return ratio * 2.0 * budget / (1.0 + math.sqrt(1.0 + 4.0 * ratio**2 * budget))
