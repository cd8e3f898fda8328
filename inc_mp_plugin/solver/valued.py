"""The same knapsack, over values of keeping ops instead of their loss MSE (arXiv 2301.13330)."""

from __future__ import annotations

import math
from dataclasses import replace

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.op_values import OpValues
from inc_mp_plugin.solver.milp import Candidate, Choice, choose
from inc_mp_plugin.solver.options import Option, Program


def priced_by(one: Program, values: OpValues, gain: float | None) -> Program:
    """The program, without the configurations that lower an op to a format for which it has no value.

    Raises:
        InputError: no gain is wanted, or an op must leave the base format and has no value.
    """
    if gain is None:
        message = (
            f"strategy {values.method} keeps the most value within a budget of cost, and its values are no "
            "losses that tau could hold: give budget (of the cost) or gain_fraction (wanted gain)"
        )
        raise InputError(message)
    groups = []
    for group, options in zip(one.gains.groups, one.groups, strict=True):
        kept = tuple(o for o in options if _value(group.ops, o, one.gains.base, values) is not None)
        if not kept:
            message = (
                f"{values.method} has no value for an op among {', '.join(group.ops[:3])}, and what runs the "
                "model wants it in a lower format; use strategy ip_mse"
            )
            raise InputError(message)
        groups.append(kept)
    return replace(one, groups=tuple(groups))


def least_value(one: Program, values: OpValues, gain: float) -> Choice:
    """The choice that gains this much with the least sum of the values of the ops that it lowers.

    With v(op, f) the value of keeping an op, the most value within a budget of cost (section 3.1)::

        min sum v(op, f) over lowered ops    s.t.    sum_j c_j(p) >= gain

    Args:
        one: from `priced_by`.
        values: of EAGL or ALPS.
        gain: in the unit of the gains.
    """
    groups = [
        [Candidate(-(_value(group.ops, o, one.gains.base, values) or 0.0), -o.gain) for o in options]
        for group, options in zip(one.gains.groups, one.groups, strict=True)
    ]
    return choose(groups, -gain)


def _value(ops: tuple[str, ...], option: Option, base: str, values: OpValues) -> float | None:
    """Sum of the values of the ops that a configuration lowers; None if one has no value."""
    lowered = [(op, f) for op, f in zip(ops, option.configuration, strict=True) if f != base]
    known = [values.values.get(format, {}).get(op) for op, format in lowered]
    numbers = [value for value in known if value is not None]
    return math.fsum(numbers) if len(numbers) == len(known) else None
