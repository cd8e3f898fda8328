"""The integer program of eq. 5 to 7: a multiple-choice knapsack, solved exactly."""

from __future__ import annotations

import enum
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import highspy
import numpy as np

from inc_mp_plugin.errors import InfeasibleError, SolverError
from inc_mp_plugin.solver.core import Floats, TooManyStatesError, search


class Status(enum.Enum):
    """How a solve ended; the value is what the user reads."""

    OPTIMAL = "proved optimal"
    TIME_LIMIT = "time limit reached: within the budget, but not proved optimal"


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


_ROUNDING = 1e-12
_STATUS = {
    highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
    highspy.HighsModelStatus.kTimeLimit: Status.TIME_LIMIT,
}


def choose(groups: Sequence[Sequence[Candidate]], capacity: float, *, time_limit_s: float = 60.0) -> Choice:
    """Choose one candidate per group: the largest value within the capacity.

    Solves, with x_jp = 1 when group j takes candidate p::

        max   sum_jp value_jp x_jp                                  (eq. 5, 7)
        s.t.  sum_p  x_jp = 1             for every group j
              sum_jp cost_jp x_jp <= capacity                       (eq. 6)
              x_jp in {0, 1}

    HiGHS solves the relaxed program, whose price on the capacity starts an exact search (`core`); if
    that search grows too large, HiGHS solves the integer program itself. The answer is checked
    outside of both and never exceeds the capacity, not by a rounding error.

    Args:
        groups: candidates of each group, none empty; costs and values in any unit.
        capacity: in the unit of the costs.
        time_limit_s: wall-clock limit of the integer program, in seconds.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer.

    Example:
        >>> keep, quantize = Candidate(0.0, 0.0), Candidate(2.0, 0.3)
        >>> choose([[keep, quantize], [keep, quantize]], capacity=0.5).picks in {(0, 1), (1, 0)}
        True
    """
    started = time.perf_counter()
    slack = _slack(groups, capacity)
    # The slack is rounded: what it seems to leave out by a hair may fit, and is checked in the end.
    kept = [_undominated(group, slack + _ROUNDING * abs(capacity)) for group in groups]
    picks, status, gap = tuple(indices[-1] for indices in kept), Status.OPTIMAL, 0.0
    if cost(groups, picks) > capacity:  # else every group takes its best: nothing to trade off
        picks, status, gap = _solve(groups, kept, slack, capacity, time_limit_s)
    return Choice(picks, status, gap, time.perf_counter() - started)


def price(groups: Sequence[Sequence[Candidate]], capacity: float) -> float:
    """Value per unit of capacity at the optimum of the relaxed program; 0 if the capacity does not bind.

    Raises:
        InfeasibleError: even the cheapest candidates exceed the capacity.
        SolverError: HiGHS stopped without an answer.
    """
    slack = _slack(groups, capacity)
    kept = [_undominated(group, math.inf) for group in groups]  # the relaxed program takes parts of any
    if cost(groups, [indices[-1] for indices in kept]) <= capacity or not slack:
        return 0.0
    values, costs, largest = _scaled(groups, kept, slack)
    return _Program(values, costs, math.inf).price() * largest / slack


def cost(groups: Sequence[Sequence[Candidate]], picks: Sequence[int]) -> float:
    """Total cost of a choice, exactly rounded."""
    return math.fsum(group[p].cost for group, p in zip(groups, picks, strict=True))


def _slack(groups: Sequence[Sequence[Candidate]], capacity: float) -> float:
    """Capacity that the cheapest candidates leave."""
    slack = capacity - math.fsum(min(c.cost for c in group) for group in groups)
    if slack < 0:
        message = f"the least that can be reached is {capacity - slack:.6g}, above {capacity:.6g}"
        raise InfeasibleError(message)
    return slack


def _undominated(group: Sequence[Candidate], slack: float) -> list[int]:
    """Indices by rising cost and value; without those no optimal answer needs or can afford."""
    least = min(c.cost for c in group)
    order = sorted(range(len(group)), key=lambda i: (group[i].cost, -group[i].value))
    kept: list[int] = []
    for i in order:
        affordable = group[i].cost - least <= slack
        if affordable and (not kept or group[i].value > group[kept[-1]].value):
            kept.append(i)
    return kept


def _solve(
    groups: Sequence[Sequence[Candidate]],
    kept: list[list[int]],
    slack: float,
    capacity: float,
    time_limit_s: float,
) -> tuple[tuple[int, ...], Status, float]:
    values, costs, _ = _scaled(groups, kept, slack)

    def original(picks: Sequence[int]) -> tuple[int, ...]:
        return tuple(indices[p] for indices, p in zip(kept, picks, strict=True))

    program = _Program(values, costs, time_limit_s)
    try:
        picks = original(search(values, costs, program.price()))
        if cost(groups, picks) <= capacity:
            return picks, Status.OPTIMAL, 0.0
    except TooManyStatesError:
        pass
    while True:
        found, status, gap = program.solve()
        if cost(groups, original(found)) <= capacity:
            return original(found), status, gap
        # Within HiGHS's tolerance of the capacity, but above it: forbid this very answer.
        program.forbid(found)


def _scaled(
    groups: Sequence[Sequence[Candidate]], kept: list[list[int]], slack: float
) -> tuple[list[Floats], list[Floats], float]:
    """Values and costs as pure numbers, and the unit of the values.

    HiGHS's tolerances are absolute (1e-6) and it drops coefficients below 1e-9: costs above the cheapest
    are given in units of the slack, values in units of the largest.
    """
    chosen = [[group[i] for i in indices] for group, indices in zip(groups, kept, strict=True)]
    largest = max(part[-1].value - part[0].value for part in chosen) or 1.0
    values = [np.array([(c.value - part[0].value) / largest for c in part]) for part in chosen]
    costs = [np.array([(c.cost - part[0].cost) / (slack or 1.0) for c in part]) for part in chosen]
    return values, costs, largest


class _Program:
    """The program as HiGHS holds it: one binary column per candidate; the capacity is the last row."""

    def __init__(self, values: Sequence[Floats], costs: Sequence[Floats], time_limit_s: float) -> None:
        self._starts = np.cumsum([0, *(len(part) for part in values)])
        columns, groups = int(self._starts[-1]), len(values)
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, groups + 1
        model.sense_ = highspy.ObjSense.kMaximize
        model.col_cost_ = np.concatenate(values)
        model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
        model.row_lower_ = np.append(np.ones(groups), -highspy.kHighsInf)
        model.row_upper_ = np.ones(groups + 1)
        model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
        model.a_matrix_.start_ = np.append(self._starts, 2 * columns)
        model.a_matrix_.index_ = np.tile(np.arange(columns), 2)
        model.a_matrix_.value_ = np.concatenate([np.ones(columns), *costs])
        self._highs = highspy.Highs()
        options = {"output_flag": False, "mip_rel_gap": 0.0, "mip_abs_gap": 0.0}
        for option, setting in {**options, "time_limit": time_limit_s}.items():
            self._highs.setOptionValue(option, setting)
        self._highs.passModel(model)

    def price(self) -> float:
        """Solve the relaxed program: value per unit of capacity at its optimum."""
        self._highs.run()
        if self._highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
            message = f"HiGHS stopped with {self._highs.getModelStatus().name} on the relaxed program"
            raise SolverError(message)
        return max(0.0, float(self._highs.getSolution().row_dual[-1]))

    def solve(self) -> tuple[tuple[int, ...], Status, float]:
        """Solve the integer program; statuses are read first, for without an answer values are zeros."""
        columns = int(self._starts[-1])
        integer = np.full(columns, highspy.HighsVarType.kInteger.value, dtype=np.uint8)
        self._highs.changeColsIntegrality(columns, np.arange(columns, dtype=np.int32), integer)
        self._highs.run()
        info = self._highs.getInfo()
        status = _STATUS.get(self._highs.getModelStatus())
        feasible = highspy.SolutionStatus.kSolutionStatusFeasible
        if status is None or info.primal_solution_status != feasible:
            message = f"HiGHS stopped with {self._highs.getModelStatus().name}; no plan was found"
            raise SolverError(message)
        solution = np.array(self._highs.getSolution().col_value)
        parts = np.split(solution, self._starts[1:-1])
        return tuple(int(part.argmax()) for part in parts), status, float(info.mip_gap)

    def forbid(self, picks: Sequence[int]) -> None:
        """Add a row that excludes one answer and no other."""
        columns = (self._starts[:-1] + np.array(picks)).astype(np.int32)
        ones = np.ones(len(columns))
        self._highs.addRow(-highspy.kHighsInf, len(columns) - 1, len(columns), columns, ones)
