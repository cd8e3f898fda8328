"""The margins of a plan's ops, from the relaxed program, whose corners are exact plans."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from inc_mp_plugin.core.margins import Corner, Margin, Margins
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.solver.dual import binding_row, dual_price
from inc_mp_plugin.solver.optimum import Cost
from inc_mp_plugin.solver.program import Option, Program, Totals


def margins(plan: Plan, program: Program) -> Margins:
    """Find how near each op of a plan is to its other formats.

    With c the cost of an option, g its gain and p the dual price, the relaxed program takes of each group an
    option of the largest g - p c. The margin of an op compares the plan's option with the best one of those
    in which the op is on the other side, in the base format or in a lower one.

    Args:
        plan: of the program.
        program: of the gains that keep to the demands of the plan's consumers.
    """
    row = binding_row(plan, program)
    price = dual_price(program, row)
    entries = _entries(program, row.cost, plan)
    of = {}
    for group, options in zip(program.gains.groups, program.groups, strict=True):
        now = tuple(plan.formats[op] for op in group.ops)
        current = next((option for option in options if option.configuration == now), None)
        for place, op in enumerate(group.ops):
            lowered = now[place] != plan.base
            others = [o for o in options if (o.configuration[place] != plan.base) != lowered]
            if current is None or not others:
                continue
            other = max(others, key=lambda o: o.gain - price * row.cost(o))
            below, base = (current, other) if lowered else (other, current)
            of[op] = Margin(below.gain - base.gain, row.cost(below) - row.cost(base), entries.get(op))
    return Margins(price, plan.constraint, of)


class _Step(NamedTuple):
    """A step along the frontier: one group goes from one option to its next."""

    rate: float
    ops: tuple[str, ...]
    before: Option
    after: Option


def _entries(program: Program, cost: Cost, plan: Plan) -> dict[str, Corner]:
    """Find the first corner of the frontier at which each op is lowered.

    The relaxed program takes the steps of all groups by falling rate. After each step it has a whole option
    of every group, so what it has then is the optimum of the integer program, too, at what that costs.
    """
    entries: dict[str, Corner] = {}
    hulls = [_hull(options, cost) for options in program.groups]
    sums: list[float] = [math.fsum(column) for column in zip(*(hull[0][1:] for hull in hulls), strict=True)]
    steps = []

    def enter(ops: Sequence[str], option: Option) -> None:
        corner = Corner(program.predicted(Totals(*sums), plan.constraint), sums[0])
        for op, name in zip(ops, option.configuration, strict=True):
            if name != plan.base:
                entries.setdefault(op, corner)

    for group, hull in zip(program.gains.groups, hulls, strict=True):
        enter(group.ops, hull[0])
        steps += list(_steps(group.ops, hull, cost))
    for step in sorted(steps, key=lambda step: -step.rate):
        parts = zip(sums, step.before[1:], step.after[1:], strict=True)
        sums = [total - old + new for total, old, new in parts]
        enter(step.ops, step.after)
    return entries


def _steps(ops: tuple[str, ...], hull: Sequence[Option], cost: Cost) -> Iterator[_Step]:
    for before, after in pairwise(hull):
        yield _Step((after.gain - before.gain) / (cost(after) - cost(before)), ops, before, after)


def _hull(options: Sequence[Option], cost: Cost) -> list[Option]:
    """List the options that some price makes the best of a group, by rising cost and gain."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda o: (cost(o), -o.gain)):
        if hull and option.gain <= hull[-1].gain:
            continue
        while len(hull) > 1 and _above(hull[-2], option, hull[-1], cost):
            hull.pop()
        hull.append(option)
    return hull


def _above(first: Option, last: Option, between: Option, cost: Cost) -> bool:
    """Tell if an option between two others is on the line between them, or below it."""
    width, height = cost(last) - cost(first), last.gain - first.gain
    return (between.gain - first.gain) * width <= height * (cost(between) - cost(first))
