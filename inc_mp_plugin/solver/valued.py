"""The same knapsack, over values of keeping ops instead of their loss MSE (arXiv 2301.13330)."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.op_values import OpValues
from inc_mp_plugin.solver.milp import Candidate, Choice, choose, total
from inc_mp_plugin.solver.program import Option, Program


def least_value(one: Program, values: OpValues, gain: Fraction) -> Choice:
    """The choice that gains this much with the least sum of the values of the ops that it lowers.

    With v(op, f) the value of keeping an op, the most value within a budget of cost (section 3.1)::

        min sum v(op, f) over lowered ops    s.t.    sum_j c_j(p) >= gain

    An op stays in the base format if it has no value.

    Args:
        one: the program.
        values: of EAGL or ALPS.
        gain: exactly, in the unit of the gains.

    Raises:
        InputError: an op must leave the base format, and has no value.
        InfeasibleError: ops that have a value do not gain as much.
    """
    groups, places = [], []
    for group, options in zip(one.gains.groups, one.groups, strict=True):
        sums = [_value(group.ops, option, one.gains.base, values) for option in options]
        kept = [place for place, value in enumerate(sums) if value is not None]
        if not kept:
            message = (
                f"{values.method} has no value for an op among {', '.join(group.ops[:3])}, and what runs the "
                "model wants it in a lower format; use strategy ip_mse"
            )
            raise InputError(message)
        groups.append([Candidate(-(sums[place] or 0.0), -options[place].gain) for place in kept])
        places.append(kept)
    most = total(max(-candidate.cost for candidate in group) for group in groups)
    if gain > most:
        message = (
            f"strategy {values.method} has no value for some ops (products without a weight, or what no "
            f"sample reached), so they stay: of the largest gain it can have {float(most / one.most):.4g}, "
            f"not {float(gain / one.most):.4g}; want less, or use strategy ip_mse"
        )
        raise InfeasibleError(message)
    choice = choose(groups, -gain)
    picks = tuple(kept[pick] for kept, pick in zip(places, choice.picks, strict=True))
    return replace(choice, picks=picks)


def _value(ops: tuple[str, ...], option: Option, base: str, values: OpValues) -> float | None:
    """Sum of the values of the ops that a configuration lowers; None if one has no value."""
    lowered = [(op, f) for op, f in zip(ops, option.configuration, strict=True) if f != base]
    known = [values.values.get(format_name, {}).get(op) for op, format_name in lowered]
    numbers = [value for value in known if value is not None]
    return math.fsum(numbers) if len(numbers) == len(known) else None
