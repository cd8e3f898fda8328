"""From predicted to measured: the largest loss budget at which the measured loss is surely within tau."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import HELD, Measured, Round, Verification, verdict

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Plan

# Thresholds that plans are solved for, as parts of tau: twelve from 0.48 to 3.6, 1.0 among them.
_WIDE = tuple(1.2**power for power in range(-4, 8))
_NARROW = (0.25, 0.5, 0.75)  # of the way from a threshold that held to the next, on a logarithmic scale
_SMALLER = (0.125, 0.25, 0.5)  # of the first threshold, if it did not hold
MOST_PLANS = len(_WIDE) + len(_NARROW)


def close_loop(
    plan_at: Callable[[float], Plan],
    measure: Callable[[Plan], Measured],
    tau: float,
    *,
    samples: int,
    level: float,
) -> Verification:
    """Find the plan of largest gain whose measured normalized RMSE is surely at most tau.

    A plan holds if the upper end of its measured interval is within tau. A choice among all plans that hold
    would favour plans that were measured too low by chance. So plans are tested in a fixed order, by rising
    budget, and the first plan that does not hold ends the row: no plan behind it counts. A row accepts a plan
    that exceeds tau only if the first such plan of the row passes its test. This happens as rarely as a
    single test errs, however long the row is (fixed-sequence testing: Maurer, Hothorn and Lehmacher, 1995;
    Angelopoulos et al., Learn then Test, arXiv 2110.01052).

    There are two rows. The first row has wide steps. The second row has narrow steps, from the last wide step
    that held to the first wide step that did not. A test errs with probability (1 - level) / 2, which the
    upper end of an interval leaves out. So, where the loss grows with the budget, the chosen plan exceeds tau
    with probability 1 - level at most.

    Args:
        plan_at: solves with this correction of the budget, the square of a part of tau.
        measure: returns a plan's measured sqrt(E[(g^ - g)^2] / E[g^2]) on held-out samples, and its interval.
        tau: the threshold, a normalized RMSE.
        samples: number of held-out samples.
        level: of the measured intervals, between 0 and 1.

    Returns:
        All measured plans, in order, and the chosen plan among them. A plan that lowers nothing always holds.
    """
    rounds: list[Round] = []

    def attempt(part: float) -> int:
        plan = plan_at(part**2)
        for number, earlier in enumerate(rounds):
            if (earlier.gain, earlier.predicted_nrmse) == (plan.gain, plan.nrmse):
                return number
        measured = measure(plan) if plan.quantized else Measured(0.0, Interval(0.0, 0.0))
        nrmse, interval = measured.nrmse, measured.interval
        rounds.append(Round(part**2, plan.nrmse, nrmse, plan.gain, len(plan.quantized), interval))
        return len(rounds) - 1

    def row(parts: Iterable[float], last: int) -> tuple[int, float | None]:
        """Find the last plan that holds, and the part of tau at which a plan does not hold."""
        for part in parts:
            number = attempt(part)
            if verdict(rounds[number].interval, tau) != HELD:
                return last, part
            last = number
            if rounds[last].gain >= largest:
                break
        return last, None

    largest = plan_at(1.0).largest_gain
    last, end = row(_WIDE, attempt(0.0))
    if end is not None:
        last, _ = row(_narrow_steps(end), last)
    return Verification(tau, samples, tuple(rounds), last, level)


def _narrow_steps(end: float) -> tuple[float, ...]:
    """List parts of tau between the last wide step that held and the first that did not."""
    place = _WIDE.index(end)
    if not place:
        return tuple(end * part for part in _SMALLER)
    start = _WIDE[place - 1]
    return tuple(start * (end / start) ** way for way in _NARROW)
