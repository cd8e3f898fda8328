"""The knapsack as HiGHS solves it: the only file of the package that uses highspy.

Last checked with highspy 1.7.1 and 1.16.0.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import highspy
import numpy as np
from numpy.typing import NDArray

from inc_mp_plugin.core.errors import InfeasibleError, SolverError
from inc_mp_plugin.solver.search import Floats, Knapsack


class Status(enum.Enum):
    """End of a solve; the value is the text that the user reads."""

    OPTIMAL = "proved optimal"
    CLOSE = "no plan is better by more than the gap"
    TIME_LIMIT = "time limit reached: within the constraint, but not proved optimal"


class Relaxed(NamedTuple):
    """Optimum of the relaxed program: price of the cost, value, and picks rounded down in cost."""

    price: float
    value: float
    picks: tuple[int, ...]


class Answer(NamedTuple):
    """Answer of HiGHS: one candidate per group, and the relative optimality gap."""

    picks: tuple[int, ...]
    status: Status
    gap: float


# The tolerances are absolute, and costs and values are about 1: these are the smallest that HiGHS takes
# without trouble.
_OPTIONS = {
    "mip_rel_gap": 0.0,
    "mip_abs_gap": 0.0,
    "mip_feasibility_tolerance": 1e-9,
    "primal_feasibility_tolerance": 1e-9,
}
_STATUS = {
    highspy.HighsModelStatus.kOptimal: Status.OPTIMAL,
    highspy.HighsModelStatus.kTimeLimit: Status.TIME_LIMIT,
}
_TINY = 1e-9  # a part of a candidate below this is a rounding error of the relaxed program


class _QuietHighs(highspy.Highs):  # type: ignore[misc]
    """HiGHS that prints nothing.

    From 1.8 on the constructor of `Highs` registers callbacks before any option can be set, and HiGHS then
    prints its banner. No callback is used here, so that constructor is passed over.
    """

    def __init__(self) -> None:
        super(highspy.Highs, self).__init__()
        self.setOptionValue("output_flag", False)


def solve_relaxed(knapsack: Knapsack, time_limit_s: float) -> Relaxed:
    """Solve the relaxed program, which may take parts of candidates.

    Raises:
        SolverError: HiGHS stopped without an answer.
    """
    highs = _load(knapsack, time_limit_s)
    highs.run()
    if highs.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        message = f"HiGHS ended with {highs.getModelStatus().name} on the relaxed program: no plan was found"
        raise SolverError(message)
    solution = highs.getSolution()
    # Candidates are sorted by rising cost, so the first candidate that has a part is the cheapest one.
    picks = tuple(int((part > _TINY).argmax()) for part in _parts(knapsack, solution.col_value))
    value = float(np.concatenate(knapsack.values) @ np.array(solution.col_value))
    return Relaxed(max(0.0, float(solution.row_dual[-1])), value, picks)


def solve_integer(
    knapsack: Knapsack,
    forbidden: Sequence[Sequence[int]],
    time_limit_s: float,
    *,
    also: Sequence[tuple[Sequence[Floats], float]] = (),
) -> Answer | None:
    """Solve the integer program, without the forbidden answers.

    Args:
        knapsack: in pure numbers.
        forbidden: answers that are ruled out, each with one candidate per group.
        time_limit_s: of HiGHS, in seconds.
        also: costs by group and slack of further rows.

    Returns:
        The answer; None if the time was over before there was one.

    Raises:
        InfeasibleError: no answer is within the further rows.
        SolverError: HiGHS stopped without an answer for another reason.
    """
    highs = _load(knapsack, time_limit_s)
    starts = _starts(knapsack)
    for costs, slack in also:
        columns = np.arange(starts[-1], dtype=np.int32)
        highs.addRow(-highspy.kHighsInf, slack, len(columns), columns, np.concatenate(costs))
    for picks in forbidden:
        columns = (starts[:-1] + np.array(picks)).astype(np.int32)
        highs.addRow(-highspy.kHighsInf, len(columns) - 1, len(columns), columns, np.ones(len(columns)))
    count = int(starts[-1])
    kinds = np.full(count, highspy.HighsVarType.kInteger.value, dtype=np.uint8)
    highs.changeColsIntegrality(count, np.arange(count, dtype=np.int32), kinds)
    highs.run()
    # Both statuses come first: without an answer the values of the columns are zeros.
    info, status = highs.getInfo(), _STATUS.get(highs.getModelStatus())
    answered = info.primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if status is Status.TIME_LIMIT and not answered:
        return None
    if highs.getModelStatus() == highspy.HighsModelStatus.kInfeasible and also:
        message = "no plan meets all that is asked for; give larger thresholds, or ask for less gain"
        raise InfeasibleError(message)
    if status is None or not answered:
        message = f"HiGHS ended with {highs.getModelStatus().name}: no plan was found"
        raise SolverError(message)
    parts = _parts(knapsack, highs.getSolution().col_value)
    picks = tuple(int(part.argmax()) for part in parts)
    return Answer(picks, status, gap(float(info.mip_dual_bound), knapsack.value(picks)))


def gap(bound: float, value: float) -> float:
    """Compute the gap between a value and an upper bound of the optimum, relative to the bound."""
    return max(0.0, bound - value) / abs(bound) if bound else 0.0


def _starts(knapsack: Knapsack) -> NDArray[np.int64]:
    return np.cumsum([0, *(len(part) for part in knapsack.values)])


def _parts(knapsack: Knapsack, columns: Sequence[float]) -> list[Floats]:
    """Split the values of the columns by group."""
    return np.split(np.array(columns), _starts(knapsack)[1:-1])


def _load(knapsack: Knapsack, time_limit_s: float) -> _QuietHighs:
    """Load the relaxed program: one column per candidate, one row per group, and the slack as the last row.

    Every solve has a new HiGHS, because the clock of a HiGHS goes on from one solve to the next.
    """
    starts, groups = _starts(knapsack), len(knapsack.values)
    columns = int(starts[-1])
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = columns, groups + 1
    model.sense_ = highspy.ObjSense.kMaximize
    model.col_cost_ = np.concatenate(knapsack.values)
    model.col_lower_, model.col_upper_ = np.zeros(columns), np.ones(columns)
    model.row_lower_ = np.append(np.ones(groups), -highspy.kHighsInf)
    model.row_upper_ = np.append(np.ones(groups), knapsack.slack)
    model.a_matrix_.format_ = highspy.MatrixFormat.kRowwise
    model.a_matrix_.start_ = np.append(starts, 2 * columns)
    model.a_matrix_.index_ = np.tile(np.arange(columns), 2)
    model.a_matrix_.value_ = np.concatenate([np.ones(columns), *knapsack.costs])
    highs = _QuietHighs()
    for option, setting in {**_OPTIONS, "time_limit": time_limit_s}.items():
        highs.setOptionValue(option, setting)
    highs.passModel(model)
    return highs
