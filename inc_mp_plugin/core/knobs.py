"""The thresholds that a plan is held to, and what they ask for."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.pipeline.next_command import rounded_up
from inc_mp_plugin.solver.program import Program

_LARGEST = 1e100  # of tau, whose square must be a number, too


def is_number(value: object) -> bool:
    """Whether something is a finite real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_knobs(tau: float | None, gain_fraction: float | None, budget: float | None = None) -> None:
    """Refuse thresholds that no plan could be made for.

    Raises:
        InputError: all are missing, one is out of range, or two say how much is to be gained.
    """
    if tau is None and gain_fraction is None and budget is None:
        message = (
            "give tau (the threshold of the normalized RMSE), gain_fraction (the wanted gain) or budget "
            "(of cost: what a plan may cost)"
        )
        raise InputError(message)
    if tau is not None and not (is_number(tau) and 0 < tau <= _LARGEST):
        message = f"tau is {tau!r}; it must be a number above 0, such as 0.01"
        raise InputError(message)
    for name, value in (("gain_fraction", gain_fraction), ("budget", budget)):
        if value is not None and not (is_number(value) and 0 < value <= 1):
            message = f"{name} is {value!r}; it must be a number above 0 and at most 1"
            raise InputError(message)
    if gain_fraction is not None and budget is not None:
        message = f"gain_fraction {gain_fraction:g} and budget {budget:g} say the same thing twice; give one"
        raise InputError(message)


def wanted_gain(one: Program, gain_fraction: float | None, budget: float | None) -> Fraction | None:
    """Compute the gain asked for by a fraction of the largest gain or a cost budget; None for neither.

    Exact, from the decimals of the fraction: a budget of 0.7 leaves 3/10 of the cost to gain, not the
    0.30000000000000004 that floats make of it, which no number of bytes might reach. Where gains are not
    exact, it is less by their tolerance.

    Raises:
        InputError: the objective has no cost that a cost budget could be a fraction of.
        InfeasibleError: no plan costs as little.
    """
    if gain_fraction is not None:
        return max(_exact(gain_fraction) * one.most - one.gains.tolerance, Fraction(0))
    if budget is None:
        return None
    cost, objective = one.gains.cost, one.gains.objective
    if not cost:
        message = (
            f"the gains of {objective} do not say what everything costs in {one.gains.base}, so a cost "
            "budget means nothing; give gain_fraction, or run `inc-mp tune` again"
        )
        raise InputError(message)
    gain = max((1 - _exact(budget)) * Fraction(cost) - one.gains.tolerance, Fraction(0))
    if gain > one.most:
        message = (
            f"no plan costs at most {budget:.6g} of the {objective} of everything in {one.gains.base}; the "
            f"least budget that can be met is {rounded_up(1 - one.most / Fraction(cost), 6)}"
        )
        raise InfeasibleError(message)
    return gain


def _exact(fraction: float) -> Fraction:
    """The number that was written: 7/10 for 0.7."""
    return Fraction(str(fraction))
