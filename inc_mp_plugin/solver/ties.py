"""Demands of consumers in the program: configurations that no consumer could run are left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import NamedTuple

from inc_mp_plugin.core.demands import Demands, Tie
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel, loss_model
from inc_mp_plugin.core.plan import Plan, TieCost
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.milp import Candidate, price
from inc_mp_plugin.solver.program import Program, options, program
from inc_mp_plugin.targets.layout import components


def constrained(gains: Gains, demands: Demands) -> Gains:
    """The same gains, of configurations alone that keep to the demands.

    Groups that share a tie become one group: its configurations are those of its parts that agree on
    the formats of every tie, and their gains add up, as the gains of groups do (eq. 7).

    Args:
        gains: of one objective.
        demands: from `targets.rules.demands_of`; ops that the gains do not know are ignored.

    Raises:
        InputError: no configuration of a group keeps to them.
    """
    tie_of = {op: number for number, tie in enumerate(demands.ties) for op in tie.ops}
    sets = [
        {("group", number), *(("tie", tie_of[op]) for op in group.ops if op in tie_of)}
        for number, group in enumerate(gains.groups)
    ]
    united = (sorted(n for what, n in one if what == "group") for one in components(sets))
    groups = [
        _joined([gains.groups[n] for n in numbers], gains.base, tie_of, demands) for numbers in sorted(united)
    ]
    return replace(gains, groups=tuple(groups))


def demanded_program(gains: Gains, sensitivity: Sensitivity | LossModel, demands: Demands) -> Program:
    """The program of what the consumers can run, beside their KV cache.

    Args:
        gains: of one objective, constrained or not.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        demands: of the plan's consumers.

    Raises:
        InputError: as `constrained` and `program`.
    """
    losses = loss_model(sensitivity)
    if demands.cached:
        losses = replace(losses, cached=demands.cached)
    return program(constrained(gains, demands), losses)


_NOTHING = 1e-9  # of the largest gain: differences this small are rounding errors


class _Partial(NamedTuple):
    """A choice for the groups so far."""

    configuration: tuple[str, ...]
    gain: tuple[float, ...]
    stderr: tuple[float, ...]
    of_tie: dict[int, str]


def _joined(
    groups: Collection[GroupGains], base: str, tie_of: dict[str, int], demands: Demands
) -> GroupGains:
    partials = [_Partial((), (), (), {})]
    for group in groups:
        allowed = [
            (configuration, gain, stderr, of_tie)
            for configuration, gain, stderr in zip(
                group.configurations, group.gain, group.stderr, strict=True
            )
            if _kept_to(group.ops, configuration, base, demands)
            and (of_tie := _formats_of_ties(group.ops, configuration, tie_of)) is not None
        ]
        if not allowed:
            raise InputError(_nothing_left(group, demands))
        partials = [
            _Partial(
                partial.configuration + configuration,
                (*partial.gain, gain),
                (*partial.stderr, stderr),
                {**partial.of_tie, **of_tie},
            )
            for partial in partials
            for configuration, gain, stderr, of_tie in allowed
            if all(partial.of_tie.get(tie, format_name) == format_name for tie, format_name in of_tie.items())
        ]
    first = next(iter(groups))
    ops = tuple(op for group in groups for op in group.ops)
    configurations = tuple(partial.configuration for partial in partials)
    if len(groups) == 1:
        gain = tuple(partial.gain[0] for partial in partials)
        stderr = tuple(partial.stderr[0] for partial in partials)
        return replace(first, configurations=configurations, gain=gain, stderr=stderr)
    notes = "; ".join(dict.fromkeys(group.note for group in groups if group.note))
    return GroupGains(
        ops,
        configurations,
        tuple(math.fsum(partial.gain) for partial in partials),
        tuple(math.hypot(*partial.stderr) for partial in partials),
        note=notes,
    )


def _kept_to(ops: Iterable[str], configuration: Iterable[str], base: str, demands: Demands) -> bool:
    return not any(
        (format_name != base and op in demands.kept) or (format_name == base and op in demands.lowered)
        for op, format_name in zip(ops, configuration, strict=True)
    )


def _formats_of_ties(
    ops: Iterable[str], configuration: Iterable[str], tie_of: dict[str, int]
) -> dict[int, str] | None:
    """The format of every tie in a configuration; None if one of them has two."""
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


def held_to(demands: Demands, plan: Plan, gains: Gains, one: Program) -> Plan:
    """The same plan, which says what it was held to and what each tie cost (see `TieCost`).

    Args:
        demands: that the plan keeps to.
        plan: of `one`.
        gains: not constrained.
        one: the program of the constrained gains.
    """
    candidates = [[Candidate(o.gain, o.loss_mse) for o in group] for group in one.groups]
    capacity = one.losses.without_drift(plan.loss_budget)
    gain_per_loss = price(candidates, capacity) if demands.ties else 0.0
    lower = {format_name for group in gains.groups for c in group.configurations for format_name in c} - {
        gains.base
    }
    loss_mse = {format_name: one.losses.loss_mse(format_name) for format_name in lower}

    def worth(group: GroupGains) -> float:
        found = options(group, gains.base, loss_mse)
        return max((o.gain - gain_per_loss * o.loss_mse for o in found), default=0.0)

    costs = tuple(TieCost(tie.ops, tie.why, cost) for tie, cost in tie_costs(gains, demands, worth))
    return replace(plan, targets=demands.targets, serving=demands.serving, ties=costs)


def tie_costs(
    gains: Gains, demands: Demands, worth: Callable[[GroupGains], float]
) -> list[tuple[Tie, float]]:
    """What each tie takes away: the worth of its ops if they could choose on their own, less what it is.

    Args:
        gains: not yet constrained.
        demands: whose ties are asked for.
        worth: the best that a group's configurations offer, such as gain less its loss at a price.
    """
    group_of = {op: group for group in gains.groups for op in group.ops}
    nothing = _NOTHING * gains.largest
    costs = []
    for tie in demands.ties:
        known = [op for op in tie.ops if op in group_of]
        touched = {id(group_of[op]): group_of[op] for op in known}
        ops = {op for group in touched.values() for op in group.ops}
        nearby = [t for t in demands.ties if not ops.isdisjoint(t.ops)]
        touched = {id(group_of[op]): group_of[op] for t in nearby for op in t.ops if op in group_of}
        part = replace(gains, groups=tuple(touched.values()))
        worths = [
            math.fsum(worth(group) for group in constrained(part, replace(demands, ties=tuple(ties))).groups)
            for ties in (nearby, [t for t in nearby if t is not tie])
        ]
        cost = worths[1] - worths[0]
        costs.append((tie, cost if cost > nothing else 0.0))
    return costs
