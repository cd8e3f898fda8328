"""The gain that a knob asks of a plan, exactly."""

from __future__ import annotations

from fractions import Fraction

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.solver.program import Program


def required_gain(program: Program, gain_fraction: float | None, budget: float | None) -> Fraction | None:
    """Compute the gain asked for by a fraction of the largest gain or a cost budget; None for neither.

    Exact, from the decimals of the fraction: a budget of 0.7 leaves 3/10 of the cost to gain, not the
    0.30000000000000004 that floats make of it, which no number of bytes might reach. Where gains are not
    exact, it is less by their tolerance.

    Raises:
        InputError: the objective has no cost that a cost budget could be a fraction of.
        InfeasibleError: no plan costs as little.
    """
    if gain_fraction is not None:
        return max(_exact(gain_fraction) * program.most - program.gains.tolerance, Fraction(0))
    if budget is None:
        return None
    cost, objective = program.gains.cost, program.gains.objective
    if not cost:
        message = (
            f"the gains of {objective} do not say what everything costs in {program.gains.base}, so a cost "
            "budget means nothing; give gain_fraction, or run `inc-mp tune` again"
        )
        raise InputError(message)
    gain = max((1 - _exact(budget)) * Fraction(cost) - program.gains.tolerance, Fraction(0))
    if gain > program.most:
        message = (
            f"no plan costs at most {budget:.6g} of the {objective} of everything in {program.gains.base}; "
            f"the least budget that can be met is {rounded_up(1 - program.most / Fraction(cost), 6)}"
        )
        raise InfeasibleError(message)
    return gain


def _exact(fraction: float) -> Fraction:
    """The number that was written: 7/10 for 0.7."""
    return Fraction(str(fraction))
