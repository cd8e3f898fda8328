"""The choice of least value for a gain: EAGL's and ALPS's prices in the place of losses."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.plan import OpValues
from inc_mp_plugin.solver.milp import Candidate, Choice, choose, total
from inc_mp_plugin.solver.program import Option, Program


def least_value(program: Program, values: OpValues, gain: Fraction) -> Choice:
    """Find the choice that gains this much with the least sum of the values of the ops that it lowers.

    With v(op, f) the value of keeping an op, the most value within a budget of cost (section 3.1 of
    arXiv 2301.13330)::

        min sum v(op, f) over lowered ops    s.t.    sum_j c_j(p) >= gain

    An op stays in the base format if it has no value.

    Args:
        program: the priced configurations.
        values: of EAGL or ALPS.
        gain: exactly, in the unit of the gains.

    Raises:
        InputError: an op must leave the base format, and has no value.
        InfeasibleError: ops that have a value do not gain as much.
    """
    groups, places = [], []
    base, method = program.gains.base, values.method
    for group, options in zip(program.gains.groups, program.groups, strict=True):
        sums = {place: _value_lost(group.ops, option, base, values) for place, option in enumerate(options)}
        lost = {place: value for place, value in sums.items() if value is not None}
        if not lost:
            message = (
                f"{method} has no value for an op among {', '.join(group.ops[:3])}, and the consumers of the "
                "plan need that op in a lower format; use strategy ip_mse"
            )
            raise InputError(message)
        groups.append([Candidate(-value, -options[place].gain) for place, value in lost.items()])
        places.append(tuple(lost))
    most = total(max(-candidate.cost for candidate in group) for group in groups)
    if gain > most:
        message = (
            f"{method} has no value for some ops (products without a weight, and ops that no sample "
            f"reached), which stay in {base}: the other ops gain at most {float(most / program.most):.4g} of "
            f"the largest gain, not {float(gain / program.most):.4g}; ask for less, or use strategy ip_mse"
        )
        raise InfeasibleError(message)
    choice = choose(groups, -gain)
    return replace(choice, picks=tuple(part[p] for part, p in zip(places, choice.picks, strict=True)))


def _value_lost(ops: tuple[str, ...], option: Option, base: str, values: OpValues) -> float | None:
    """Add up the values of the ops that a configuration lowers; None if one of them has no value."""
    lowered = [(op, f) for op, f in zip(ops, option.configuration, strict=True) if f != base]
    if not all(op in values.values.get(format_name, {}) for op, format_name in lowered):
        return None
    return math.fsum(values.values[format_name][op] for op, format_name in lowered)
