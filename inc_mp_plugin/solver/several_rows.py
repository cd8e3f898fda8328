"""The knapsack with several rows, solved by HiGHS, and checked in exact arithmetic."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from inc_mp_plugin.core.errors import InfeasibleError, SolverError
from inc_mp_plugin.solver import highs
from inc_mp_plugin.solver.milp import Choice, within
from inc_mp_plugin.solver.program import Option
from inc_mp_plugin.solver.search import Knapsack

_MOST_FORBIDDEN = 30


class Row(NamedTuple):
    """A sum that may not exceed a capacity: the cost of an option, and the capacity, exactly."""

    cost: Callable[[Option], float]
    capacity: Fraction


def choose_within(
    groups: Sequence[Sequence[Option]],
    rows: Sequence[Row],
    value: Callable[[Option], float],
    *,
    time_limit_s: float = 60.0,
) -> Choice:
    """Choose one option per group: the largest value within all rows.

    HiGHS solves the integer program; an answer that exceeds a row by less than HiGHS's tolerance is
    forbidden, and the program solved again.

    Args:
        groups: options of each group.
        rows: sums with their capacities.
        value: of an option.
        time_limit_s: wall-clock limit of the whole call, in seconds.

    Raises:
        InfeasibleError: no choice is within all rows.
        SolverError: HiGHS stopped without an answer.
    """
    started = time.perf_counter()
    scaled = [_scaled(groups, row.cost, row.capacity) for row in rows]
    if any(slack < 0 for _, slack in scaled):
        message = "no plan meets all that is asked for; give larger thresholds, or ask for less gain"
        raise InfeasibleError(message)
    values = [np.array([value(option) for option in group]) for group in groups]
    unit = max((float(np.ptp(part)) for part in values), default=0.0) or 1.0
    knapsack = Knapsack(tuple((part - part.min()) / unit for part in values), scaled[0][0], scaled[0][1])
    forbidden: list[tuple[int, ...]] = []
    while len(forbidden) < _MOST_FORBIDDEN:
        left = started + time_limit_s - time.perf_counter()
        answer = highs.solve_integer(knapsack, forbidden, max(left, 0.0), also=scaled[1:])
        if answer is None:
            break
        if all(_within(groups, row, answer.picks) for row in rows):
            return Choice(answer.picks, answer.status, answer.gap, time.perf_counter() - started)
        forbidden.append(answer.picks)
    message = f"HiGHS found no plan within both thresholds in {time_limit_s:g} s; give one of both, or others"
    raise SolverError(message)


def _scaled(
    groups: Sequence[Sequence[Option]], cost: Callable[[Option], float], capacity: Fraction
) -> tuple[tuple[np.ndarray, ...], float]:
    """Return costs above the cheapest of each group, and the slack, in units of about the slack."""
    costs = [np.array([cost(option) for option in group]) for group in groups]
    slack = float(capacity - sum((Fraction(float(part.min())) for part in costs), Fraction(0)))
    unit = 2.0 ** math.frexp(slack)[1] if slack > 0 else 1.0
    return tuple((part - part.min()) / unit for part in costs), slack / unit


def _within(groups: Sequence[Sequence[Option]], row: Row, picks: Sequence[int]) -> bool:
    return within([row.cost(group[p]) for group, p in zip(groups, picks, strict=True)], row.capacity)
