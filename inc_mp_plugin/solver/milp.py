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
    """One configuration of a group: what it is worth, and what it uses of the capacity."""

    value: float
    cost: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What the solver chose: one index per group; `gap` is the relative optimality gap."""

    picks: tuple[int, ...]
    status: Status
    gap: float
    seconds: float


@dataclass(frozen=True, slots=True)
class _Scaled:
    """A program in pure numbers, the candidates that it kept of each group, and the units of both.

    HiGHS's tolerances are absolute and it drops coefficients below 1e-9: costs above the cheapest are
    given in units of about the slack, values in units of the largest. The unit of costs is a power of
    two, so that costs that are whole numbers (bytes) and their sums stay exact.
    """

    knapsack: Knapsack
    kept: tuple[tuple[int, ...], ...]
    value_unit: float
    cost_unit: float

    def original(self, picks: Sequence[int]) -> tuple[int, ...]:
        """Indices of a choice in the groups as they were given."""
        return tuple(indices[p] for indices, p in zip(self.kept, picks, strict=True))


def choose(groups: Sequence[Sequence[Candidate]], capacity: Number, *, time_limit_s: float = 60.0) -> Choice:
    """Choose one candidate per group: the largest value within the capacity.

    Solves, with x_jp = 1 when group j takes candidate p::

        max   sum_jp value_jp x_jp                                  (eq. 5, 7)
        s.t.  sum_p  x_jp = 1             for every group j
              sum_jp cost_jp x_jp <= capacity                       (eq. 6)
              x_jp in {0, 1}

    HiGHS solves the relaxed program, whose price on the capacity starts an exact search (`core`); if
    that search grows too large, HiGHS solves the integer program itself. The answer is checked
    outside of both, in exact arithmetic: it never exceeds the capacity. Where all costs are whole
    multiples of a number (bytes), it is the optimum; elsewhere choices whose costs differ by rounding
    errors alone count as equal.

    Args:
        groups: candidates of each group, none empty; costs and values in any unit.
        capacity: in the unit of the costs; a fraction where a float would round it.
        time_limit_s: wall-clock limit of the whole call, in seconds.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer, or only with answers that exceed the capacity by
            less than its tolerance.

    Example:
        >>> keep, quantize = Candidate(0.0, 0.0), Candidate(2.0, 0.3)
        >>> choose([[keep, quantize], [keep, quantize]], capacity=0.5).picks in {(0, 1), (1, 0)}
        True
    """
    started = time.perf_counter()
    slack = _slack(groups, capacity)
    # As a float the slack is rounded: what it leaves out by a hair may fit, and is checked in the end.
    widened = float(slack) + _ROUNDING * abs(float(capacity))
    kept = tuple(_undominated(group, widened) for group in groups)
    picks, status, gap = tuple(indices[-1] for indices in kept), Status.OPTIMAL, 0.0
    if not within(_costs(groups, picks), capacity):  # else every group takes its best: nothing to trade off
        program = _scaled(groups, kept, float(slack))
        picks, status, gap = _solve(program, groups, capacity, started + time_limit_s)
    return Choice(picks, status, gap, time.perf_counter() - started)


def price(groups: Sequence[Sequence[Candidate]], capacity: Number) -> float:
    """Value per unit of capacity at the optimum of the relaxed program; 0 if the capacity does not bind.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer.
    """
    slack = _slack(groups, capacity)
    kept = tuple(_undominated(group, math.inf) for group in groups)  # relaxed, parts of any may be taken
    if within(_costs(groups, [indices[-1] for indices in kept]), capacity) or not slack:
        return 0.0
    program = _scaled(groups, kept, float(slack))
    return highs.relaxed(program.knapsack, math.inf).price * program.value_unit / program.cost_unit


def total(numbers: Iterable[float]) -> Fraction:
    """Sum, exactly: every float is a fraction.

    Example:
        >>> total([0.1, 0.2]) == 0.3
        False
    """
    return sum(map(Fraction, numbers), Fraction(0))


def within(costs: Sequence[float], capacity: Number) -> bool:
    """Tell if costs add up to no more than the capacity, in exact arithmetic."""
    rounded, limit = math.fsum(costs), float(capacity)
    # Rounding never turns an order around, so only a tie asks for fractions.
    return rounded < limit or (rounded == limit and total(costs) <= Fraction(capacity))


def _costs(groups: Sequence[Sequence[Candidate]], picks: Sequence[int]) -> list[float]:
    return [group[p].cost for group, p in zip(groups, picks, strict=True)]


def _slack(groups: Sequence[Sequence[Candidate]], capacity: Number) -> Fraction:
    """Capacity that the cheapest candidates leave."""
    least = total(min(c.cost for c in group) for group in groups)
    if least > capacity:
        message = f"the least that can be reached is {float(least):.6g}, above {float(capacity):.6g}"
        raise InfeasibleError(message)
    return Fraction(capacity) - least


def _undominated(group: Sequence[Candidate], slack: float) -> tuple[int, ...]:
    """Indices by rising cost and value; without those no optimal answer needs or can afford."""
    least = min(c.cost for c in group)
    order = sorted(range(len(group)), key=lambda i: (group[i].cost, -group[i].value))
    kept: list[int] = []
    for i in order:
        affordable = group[i].cost - least <= slack
        if affordable and (not kept or group[i].value > group[kept[-1]].value):
            kept.append(i)
    return tuple(kept)


def _scaled(
    groups: Sequence[Sequence[Candidate]], kept: tuple[tuple[int, ...], ...], slack: float
) -> _Scaled:
    chosen = [[group[i] for i in indices] for group, indices in zip(groups, kept, strict=True)]
    value_unit = max(part[-1].value - part[0].value for part in chosen) or 1.0
    cost_unit = 2.0 ** math.frexp(slack)[1] if slack else 1.0
    values = (np.array([(c.value - part[0].value) / value_unit for c in part]) for part in chosen)
    costs = (np.array([(c.cost - part[0].cost) / cost_unit for c in part]) for part in chosen)
    knapsack = Knapsack(tuple(values), tuple(costs), slack / cost_unit)
    return _Scaled(knapsack, kept, value_unit, cost_unit)


def _solve(
    program: _Scaled, groups: Sequence[Sequence[Candidate]], capacity: Number, deadline: float
) -> tuple[tuple[int, ...], Status, float]:
    """Picks in the groups, how the solve ended, and the gap."""

    def fits(picks: Sequence[int]) -> bool:
        return within(_costs(groups, program.original(picks)), capacity)

    def left() -> float:
        return max(0.0, deadline - time.perf_counter())

    relaxed = highs.relaxed(program.knapsack, left())
    try:
        picks = search(program.knapsack, relaxed.price, fits, deadline)
        return program.original(picks), Status.OPTIMAL, 0.0
    except OutOfTimeError:
        return _in_time(program, relaxed, fits(relaxed.picks))
    except GaveUpError:
        pass
    forbidden: list[tuple[int, ...]] = []
    while len(forbidden) < _MOST_FORBIDDEN:
        answer = highs.integer(program.knapsack, forbidden, left())
        if answer is None:
            return _in_time(program, relaxed, fits(relaxed.picks))
        if fits(answer.picks):
            return program.original(answer.picks), answer.status, answer.gap
        # Within HiGHS's tolerance of the capacity, but above it: forbid this very answer.
        forbidden.append(answer.picks)
    message = (
        f"{_MOST_FORBIDDEN} answers of HiGHS in a row miss the constraint by less than its tolerance, a "
        "billionth of it; want a little less: a larger tau or budget, or a smaller gain_fraction"
    )
    raise SolverError(message)


def _in_time(program: _Scaled, relaxed: Relaxed, fits: bool) -> tuple[tuple[int, ...], Status, float]:
    """The relaxed answer, rounded down in cost: one group at most loses by it."""
    picks = relaxed.picks if fits else (0,) * len(program.kept)
    gap = highs.gap(relaxed.value, program.knapsack.value(picks))
    return program.original(picks), Status.TIME_LIMIT, gap
