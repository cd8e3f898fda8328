"""Demands of consumers in the program: configurations that no consumer could run are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.costs import Costs, costs_of
from inc_mp_plugin.core.demands import Demands, Tie
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Plan, TieCost
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.dual import binding_row, dual_price
from inc_mp_plugin.solver.program import Program, make_program, price_formats, price_options
from inc_mp_plugin.targets.layout import components


def constrained(gains: Gains, demands: Demands) -> Gains:
    """Leave out the configurations that do not keep to the demands.

    Groups that share a tie become one group. A configuration of this group joins configurations of the
    single groups that agree on the format of every tie; the gains of the single groups add up (eq. 7).

    Args:
        gains: of one objective.
        demands: from `targets.rules.demands_of`; ops that the gains do not know are ignored.

    Raises:
        InputError: no configuration of a group keeps to the demands.
    """
    tie_of = {op: number for number, tie in enumerate(demands.ties) for op in tie.ops}
    sets = [
        {("group", number), *(("tie", tie_of[op]) for op in group.ops if op in tie_of)}
        for number, group in enumerate(gains.groups)
    ]
    joint = sorted(sorted(n for kind, n in members if kind == "group") for members in components(sets))
    groups = (_join([gains.groups[n] for n in numbers], gains.base, tie_of, demands) for numbers in joint)
    return replace(gains, groups=tuple(groups))


def constrained_program(
    gains: Gains, sensitivity: Sensitivity | CostModel | Costs, demands: Demands
) -> Program:
    """Make the program of what the consumers can run, beside their KV cache.

    Args:
        gains: of one objective, constrained or not.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`, or `Costs`.
        demands: of the plan's consumers.

    Raises:
        InputError: as `constrained` and `make_program`.
    """
    costs = costs_of(sensitivity)
    if demands.cached:
        costs = replace(costs, cached=demands.cached)
    return make_program(constrained(gains, demands), costs)


_NOTHING = 1e-9  # of the largest gain: differences this small are rounding errors


class _Joint(NamedTuple):
    """Configurations of the groups so far, joined: gain and standard error of each, format of each tie."""

    formats: tuple[str, ...]
    gain: tuple[float, ...]
    stderr: tuple[float, ...]
    of_tie: dict[int, str]


def _join(groups: Collection[GroupGains], base: str, tie_of: dict[str, int], demands: Demands) -> GroupGains:
    joints = [_Joint((), (), (), {})]
    for group in groups:
        priced = zip(group.configurations, group.gain, group.stderr, strict=True)
        allowed = [
            _Joint(formats, (gain,), (stderr,), of_tie)
            for formats, gain, stderr in priced
            if _keeps_to(demands, group.ops, formats, base)
            and (of_tie := _formats_of_ties(group.ops, formats, tie_of)) is not None
        ]
        if not allowed:
            raise InputError(_nothing_left(group, demands))
        joints = [
            _Joint(a.formats + b.formats, a.gain + b.gain, a.stderr + b.stderr, a.of_tie | b.of_tie)
            for a in joints
            for b in allowed
            if all(a.of_tie.get(tie, format_name) == format_name for tie, format_name in b.of_tie.items())
        ]
    first = next(iter(groups))
    configurations = tuple(joint.formats for joint in joints)
    if len(groups) == 1:
        gain, stderr = tuple(joint.gain[0] for joint in joints), tuple(joint.stderr[0] for joint in joints)
        return replace(first, configurations=configurations, gain=gain, stderr=stderr)
    gain = tuple(math.fsum(joint.gain) for joint in joints)
    stderr = tuple(math.hypot(*joint.stderr) for joint in joints)
    ops = tuple(op for group in groups for op in group.ops)
    notes = "; ".join(dict.fromkeys(group.note for group in groups if group.note))
    return GroupGains(ops, configurations, gain, stderr, note=notes)


def _keeps_to(demands: Demands, ops: Iterable[str], configuration: Iterable[str], base: str) -> bool:
    return not any(
        (format_name != base and op in demands.kept) or (format_name == base and op in demands.lowered)
        for op, format_name in zip(ops, configuration, strict=True)
    )


def _formats_of_ties(
    ops: Iterable[str], configuration: Iterable[str], tie_of: dict[str, int]
) -> dict[int, str] | None:
    """Find the format of every tie in a configuration; None if the ops of a tie have two formats."""
    formats: dict[int, str] = {}
    for op, format_name in zip(ops, configuration, strict=True):
        if op in tie_of and formats.setdefault(tie_of[op], format_name) != format_name:
            return None
    return formats


def _nothing_left(group: GroupGains, demands: Demands) -> str:
    reasons = [demands.lowered[op] for op in group.ops if op in demands.lowered]
    reasons += [demands.kept[op] for op in group.ops if op in demands.kept]
    return (
        f"no priced configuration of {', '.join(group.ops[:3])} can be run by {', '.join(demands.targets)} "
        f"({'; '.join(dict.fromkeys(reasons)) or 'ops of a tie were not priced together'})"
    )


def held_to(demands: Demands, plan: Plan, gains: Gains, program: Program) -> Plan:
    """Add the demands to a plan that keeps to them, with the cost of each tie (see `TieCost`).

    Args:
        demands: of the plan's consumers.
        plan: of the program.
        gains: not constrained.
        program: of the constrained gains.
    """
    row = binding_row(plan, program)
    gain_per_cost = dual_price(program, row) if demands.ties else 0.0
    prices = price_formats(gains, program.costs)

    def worth(group: GroupGains) -> float:
        options = price_options(group, gains.base, prices)
        return max((o.gain - gain_per_cost * row.cost(o) for o in options), default=0.0)

    costs = tuple(TieCost(tie.ops, tie.why, cost) for tie, cost in tie_costs(gains, demands, worth))
    return replace(plan, targets=demands.targets, serving=demands.serving, ties=costs)


def tie_costs(
    gains: Gains, demands: Demands, worth: Callable[[GroupGains], float]
) -> list[tuple[Tie, float]]:
    """Price each tie: the worth of its ops without the tie, less their worth with the tie.

    Args:
        gains: not yet constrained.
        demands: with the ties.
        worth: gives the best that a group's configurations offer, such as gain less loss at a price.
    """
    group_of = {op: group for group in gains.groups for op in group.ops}
    nothing = _NOTHING * gains.largest
    costs = []
    for tie in demands.ties:
        ops = {op for member in tie.ops if member in group_of for op in group_of[member].ops}
        nearby = [t for t in demands.ties if not ops.isdisjoint(t.ops)]
        # Other ties of these ops may reach further groups.
        touched = {id(group_of[op]): group_of[op] for t in nearby for op in t.ops if op in group_of}
        part = replace(gains, groups=tuple(touched.values()))
        with_tie, without = (
            math.fsum(worth(group) for group in constrained(part, replace(demands, ties=tuple(ties))).groups)
            for ties in (nearby, [t for t in nearby if t is not tie])
        )
        cost = without - with_tie
        costs.append((tie, cost if cost > nothing else 0.0))
    return costs
