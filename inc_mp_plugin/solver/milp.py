"""The integer program of eq. 5 to 7: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from inc_mp_plugin.core.errors import InfeasibleError, SolverError
from inc_mp_plugin.solver import highs
from inc_mp_plugin.solver.highs import Relaxed, Status
from inc_mp_plugin.solver.search import GaveUpError, Knapsack, OutOfTimeError, search

Number = float | Fraction

_ROUNDING = 1e-12
_MOST_FORBIDDEN = 30


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration of a group: its value, and the capacity that it uses."""

    value: float
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """Choice of the solver: one index per group; `gap` is the relative optimality gap."""

    picks: tuple[int, ...]
    status: Status
    gap: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A program in pure numbers, with the indices of its candidates in each group, and the units.

    HiGHS's tolerances are absolute, and HiGHS drops coefficients below 1e-9. So costs above the cheapest
    are in units of about the slack, and values in units of the largest. The unit of costs is a power of
    two, so costs that are whole numbers (bytes) and their sums stay exact.
    """

    knapsack: Knapsack
    indices: tuple[tuple[int, ...], ...]
    value_unit: float
    cost_unit: float

    def original(self, picks: Sequence[int]) -> tuple[int, ...]:
        """Return the indices of a choice in the original groups."""
        return tuple(group[p] for group, p in zip(self.indices, picks, strict=True))


def choose(groups: Sequence[Sequence[Candidate]], capacity: Number, *, time_limit_s: float = 60.0) -> Choice:
    """Choose one candidate per group: the largest value within the capacity.

    Solves, with x_jp = 1 when group j takes candidate p::

        max   sum_jp value_jp x_jp                                  (eq. 5, 7)
        s.t.  sum_p  x_jp = 1             for every group j
              sum_jp cost_jp x_jp <= capacity                       (eq. 6)
              x_jp in {0, 1}

    HiGHS solves the relaxed program, whose price on the capacity starts an exact search (see `search`). If
    that search grows too large, HiGHS solves the integer program itself. The answer is checked outside of
    both, in exact arithmetic, so the answer never exceeds the capacity. Where all costs are whole multiples
    of a number (bytes), the answer is the optimum. Elsewhere choices whose costs differ by rounding errors
    alone count as equal.

    Args:
        groups: candidates of each group, none empty; costs and values in any unit.
        capacity: in the unit of the costs; a fraction where a float would round the number.
        time_limit_s: wall-clock limit of the whole call, in seconds.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer, or every answer of HiGHS exceeds the capacity by less
            than HiGHS's tolerance.

    Example:
        >>> keep, quantize = Candidate(0.0, 0.0), Candidate(2.0, 0.3)
        >>> choose([[keep, quantize], [keep, quantize]], capacity=0.5).picks in {(0, 1), (1, 0)}
        True
    """
    started = time.perf_counter()
    slack = _slack(groups, capacity)
    # As a float the slack is rounded: what seems a hair too much may fit, and is checked in the end.
    widened = float(slack) + _ROUNDING * abs(float(capacity))
    indices = tuple(_undominated(group, widened) for group in groups)
    picks, status, gap = tuple(best[-1] for best in indices), Status.OPTIMAL, 0.0
    if not within(_costs(groups, picks), capacity):  # else every group takes its best: nothing to trade off
        program = _scaled(groups, indices, float(slack))
        picks, status, gap = _solve(program, groups, capacity, started + time_limit_s)
    return Choice(picks, status, gap, time.perf_counter() - started)


def price(groups: Sequence[Sequence[Candidate]], capacity: Number) -> float:
    """Price a unit of capacity, in value, by the relaxed program; 0 if the capacity does not bind.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer.
    """
    slack = _slack(groups, capacity)
    # The relaxed program may take a part of a candidate that alone exceeds the slack.
    indices = tuple(_undominated(group, math.inf) for group in groups)
    if within(_costs(groups, [best[-1] for best in indices]), capacity) or not slack:
        return 0.0
    program = _scaled(groups, indices, float(slack))
    return highs.solve_relaxed(program.knapsack, math.inf).price * program.value_unit / program.cost_unit


def total(numbers: Iterable[float]) -> Fraction:
    """Sum numbers exactly: every float is a fraction.

    Example:
        >>> total([0.1, 0.2]) == 0.3
        False
    """
    return sum(map(Fraction, numbers), Fraction(0))


def within(costs: Sequence[float], capacity: Number) -> bool:
    """Tell if costs add up to no more than the capacity, in exact arithmetic."""
    rounded, limit = math.fsum(costs), float(capacity)
    # Rounding never turns an order around, so fractions are needed for a tie only.
    return rounded < limit or (rounded == limit and total(costs) <= Fraction(capacity))


def _costs(groups: Sequence[Sequence[Candidate]], picks: Sequence[int]) -> list[float]:
    return [group[p].cost for group, p in zip(groups, picks, strict=True)]


def _slack(groups: Sequence[Sequence[Candidate]], capacity: Number) -> Fraction:
    """Compute the capacity that the cheapest candidates leave."""
    least = total(min(c.cost for c in group) for group in groups)
    if least > capacity:
        message = f"the least that can be reached is {float(least):.6g}, above {float(capacity):.6g}"
        raise InfeasibleError(message)
    return Fraction(capacity) - least


def _undominated(group: Sequence[Candidate], slack: float) -> tuple[int, ...]:
    """List the candidates, by rising cost and value, that are affordable and that no cheaper one matches.

    An optimal answer needs no others. For groups of a few candidates plain Python is several times as fast
    as the arrays of `search`.
    """
    least = min(c.cost for c in group)
    best: list[int] = []
    for i in sorted(range(len(group)), key=lambda i: (group[i].cost, -group[i].value)):
        affordable = group[i].cost - least <= slack
        if affordable and (not best or group[i].value > group[best[-1]].value):
            best.append(i)
    return tuple(best)


def _scaled(
    groups: Sequence[Sequence[Candidate]], indices: tuple[tuple[int, ...], ...], slack: float
) -> _Scaled:
    parts = [[group[i] for i in best] for group, best in zip(groups, indices, strict=True)]
    value_unit = max(part[-1].value - part[0].value for part in parts) or 1.0
    cost_unit = 2.0 ** math.frexp(slack)[1] if slack else 1.0
    values = (np.array([(c.value - part[0].value) / value_unit for c in part]) for part in parts)
    costs = (np.array([(c.cost - part[0].cost) / cost_unit for c in part]) for part in parts)
    knapsack = Knapsack(tuple(values), tuple(costs), slack / cost_unit)
    return _Scaled(knapsack, indices, value_unit, cost_unit)


def _solve(
    program: _Scaled, groups: Sequence[Sequence[Candidate]], capacity: Number, deadline: float
) -> tuple[tuple[int, ...], Status, float]:
    """Solve a scaled program; return the picks in the original groups, the end of the solve, and the gap."""

    def fits(picks: Sequence[int]) -> bool:
        return within(_costs(groups, program.original(picks)), capacity)

    def seconds_left() -> float:
        return max(0.0, deadline - time.perf_counter())

    relaxed = highs.solve_relaxed(program.knapsack, seconds_left())
    try:
        picks = search(program.knapsack, relaxed.price, fits, deadline)
        return program.original(picks), Status.OPTIMAL, 0.0
    except OutOfTimeError:
        return _in_time(program, relaxed, fits(relaxed.picks))
    except GaveUpError:
        pass
    forbidden: list[tuple[int, ...]] = []
    while len(forbidden) < _MOST_FORBIDDEN:
        answer = highs.solve_integer(program.knapsack, forbidden, seconds_left())
        if answer is None:
            return _in_time(program, relaxed, fits(relaxed.picks))
        if fits(answer.picks):
            return program.original(answer.picks), answer.status, answer.gap
        # The answer exceeds the capacity by less than HiGHS's tolerance: forbid this very answer.
        forbidden.append(answer.picks)
    message = (
        f"{_MOST_FORBIDDEN} answers of HiGHS in a row miss the constraint by less than HiGHS's tolerance, a "
        "billionth of it; ask for a little less: a larger tau or budget, or a smaller gain_fraction"
    )
    raise SolverError(message)


def _in_time(program: _Scaled, relaxed: Relaxed, fits: bool) -> tuple[tuple[int, ...], Status, float]:
    """Return the relaxed answer rounded down in cost; the cheapest candidates if even that does not fit.

    Rounding costs one group's value at most.
    """
    picks = relaxed.picks if fits else (0,) * len(program.indices)
    gap = highs.gap(relaxed.value, program.knapsack.value(picks))
    return program.original(picks), Status.TIME_LIMIT, gap
