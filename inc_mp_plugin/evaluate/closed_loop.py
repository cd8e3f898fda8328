"""From predicted to measured: the largest loss budget at which what is measured is surely within bounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import Round, Verification
from inc_mp_plugin.core.verdicts import HELD, Measured, Thresholds

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Plan

# Thresholds that plans are solved for, as parts of tau: twelve from 0.48 to 3.6, 1.0 among them.
_WIDE = tuple(1.2**power for power in range(-4, 8))
_NARROW = (0.25, 0.5, 0.75)  # of the way from a threshold that held to the next, on a logarithmic scale
_SMALLER = (0.125, 0.25, 0.5)  # of the first threshold, if it did not hold
_NOTHING = Measured(0.0, Interval(0.0, 0.0), 0.0, Interval(0.0, 0.0))  # of a plan that lowers nothing
_AHEAD = 4  # plans that are announced together: on average, half of the last ones are in vain
MOST_PLANS = len(_WIDE) + len(_NARROW)


def close_loop(
    plan_at: Callable[[float], Plan],
    measure: Callable[[Plan], Measured],
    thresholds: Thresholds,
    *,
    samples: int,
    level: float,
    ahead: Callable[[Sequence[Plan]], None] = lambda plans: None,
) -> Verification:
    """Find the plan of largest gain whose measured normalized RMSE and KL divergence are surely in bounds.

    A plan holds if the upper ends of its measured intervals are within tau, within kl, or both, where both
    are given. A choice among all plans that hold would favour plans that were measured too low by chance. So
    plans are tested in a fixed order, by rising budget, and the first plan that does not hold ends the row:
    no plan behind it counts. A row accepts a plan that exceeds a threshold only if the first such plan of the
    row passes its test. This happens as rarely as a single test errs, however long the row is (fixed-sequence
    testing: Maurer, Hothorn and Lehmacher, 1995; Angelopoulos et al., Learn then Test, arXiv 2110.01052).

    There are two rows. The first row has wide steps. The second row has narrow steps, from the last wide step
    that held to the first wide step that did not. A test errs with probability (1 - level) / 2, which the
    upper end of an interval leaves out. So, where the loss grows with the budget, the chosen plan exceeds tau
    with probability 1 - level at most. The same is true of kl: a KL divergence grows as the squared loss
    change does, so both budgets are corrected alike.

    Args:
        plan_at: solves with this correction of the budgets, the square of a part of tau.
        measure: returns a plan's measured sqrt(E[(g^ - g)^2] / E[g^2]) and KL divergence on held-out samples,
            and their intervals.
        thresholds: of both; at least one.
        samples: number of held-out samples.
        level: of the measured intervals, between 0 and 1.
        ahead: is told the next plans of a row, before the first of them is measured.

    Returns:
        All measured plans, in order, and the chosen plan among them. A plan that lowers nothing always holds.
    """
    search = _Search(plan_at, measure, thresholds, ahead)
    last, end = search.row(_WIDE, search.attempt(0.0))
    if end is not None:
        last, _ = search.row(_narrow_steps(end), last)
    tau, kl, floor = thresholds.tau, thresholds.kl, thresholds.floor
    return Verification(tau, samples, tuple(search.rounds), last, level, kl, floor)


class _Search:
    """The plans that were measured, and how the next are."""

    def __init__(
        self,
        plan_at: Callable[[float], Plan],
        measure: Callable[[Plan], Measured],
        thresholds: Thresholds,
        ahead: Callable[[Sequence[Plan]], None],
    ) -> None:
        """Prepare; the arguments are as in `close_loop`."""
        self.rounds: list[Round] = []
        self._plan_of = cache(lambda part: plan_at(part**2))
        self._measure, self._thresholds, self._ahead = measure, thresholds, ahead

    def attempt(self, part: float) -> int:
        """Measure the plan for a part of tau, unless it is known; return the number of its round."""
        plan = self._plan_of(part)
        for number, earlier in enumerate(self.rounds):
            if _known(earlier) == (plan.gain, plan.nrmse, plan.predicted_kl):
                return number
        measured = self._measure(plan) if plan.quantized else _NOTHING
        self.rounds.append(_round(part, plan, measured))
        return len(self.rounds) - 1

    def row(self, parts: Sequence[float], last: int) -> tuple[int, float | None]:
        """Find the last plan that holds, and the part of tau at which a plan does not hold."""
        for place, part in enumerate(parts):
            if not place % _AHEAD:
                plans = map(self._plan_of, parts[place : place + _AHEAD])
                self._ahead([plan for plan in plans if plan.quantized])
            number = self.attempt(part)
            if self._thresholds.verdict(self.rounds[number].measured) != HELD:
                return last, part
            last = number
            if self.rounds[last].gain >= self._plan_of(1.0).largest_gain:
                break
        return last, None


def _round(part: float, plan: Plan, measured: Measured) -> Round:
    """Make the record of a plan.

    Args:
        part: of tau that it was solved for.
        plan: that was measured.
        measured: its values.
    """
    return Round(
        correction=part**2,
        predicted_nrmse=plan.nrmse,
        measured_nrmse=measured.nrmse,
        gain=plan.gain,
        ops=len(plan.quantized),
        interval=measured.interval,
        predicted_kl=plan.predicted_kl,
        measured_kl=measured.kl,
        kl_interval=measured.kl_interval,
    )


def _known(tested: Round) -> tuple[float, float | None, float | None]:
    """Return what tells plans apart before they are measured."""
    return tested.gain, tested.predicted_nrmse, tested.predicted_kl


def _narrow_steps(end: float) -> tuple[float, ...]:
    """List parts of tau between the last wide step that held and the first that did not."""
    place = _WIDE.index(end)
    if not place:
        return tuple(end * part for part in _SMALLER)
    start = _WIDE[place - 1]
    return tuple(start * (end / start) ** way for way in _NARROW)
