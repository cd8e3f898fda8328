"""From predicted to measured: correct the loss budget until the measured loss is within the threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from inc_mp_plugin.results import Round, Verification

if TYPE_CHECKING:
    from inc_mp_plugin.plan import Plan

_SEARCH = 10  # plans to find where the measured loss crosses the threshold
_PROBES = 4  # plans a little above the crossing: the measured loss is no smooth curve
_STEP = 1.06  # from one of them to the next, in normalized RMSE
_CLOSE = 0.002  # of the largest gain: nothing worth measuring lies between two plans


def close_loop(
    plan_at: Callable[[float], Plan], measure: Callable[[Plan], float], tau: float, samples: int
) -> Verification:
    """Find the plan of largest gain whose measured normalized RMSE is at most tau.

    The loss MSE of plans grows with the loss budget they are solved for, so the correction c of it
    is searched: from a plan measured at nrmse the next guess is c (tau / nrmse)^2, and once one held and
    another did not, halfway between. As neighbouring plans can change places, a few plans beyond that
    are measured too, and the one of largest gain that held is chosen.

    Args:
        plan_at: solves with this correction of the loss budget.
        measure: the plan's measured sqrt(E[(g^ - g)^2] / E[g^2]) on held-out samples.
        tau: the threshold.
        samples: number of held-out samples.

    Returns:
        All plans measured, in order, and which was chosen. A plan that lowers nothing always holds.
    """
    rounds: list[Round] = []

    def attempt(correction: float) -> Round:
        plan = plan_at(correction)
        for one in rounds:
            if (one.gain, one.predicted_nrmse) == (plan.gain, plan.nrmse):
                return replace(one, correction=correction)
        nrmse = measure(plan) if plan.quantized else 0.0
        rounds.append(Round(correction, plan.nrmse, nrmse, plan.gain, len(plan.quantized)))
        return rounds[-1]

    largest = plan_at(1.0).largest_gain
    held, broken = attempt(0.0), None
    correction = 1.0
    for _ in range(_SEARCH):
        last = attempt(correction)
        if last.measured_nrmse <= tau:
            held = last if last.correction > held.correction else held
        else:
            broken = last if broken is None or last.correction < broken.correction else broken
        if last.gain >= largest and last is held:
            break
        if broken is not None and broken.gain - held.gain <= _CLOSE * largest:
            break
        correction = _next(last, held, broken, tau)
    if broken is not None:
        for step in range(1, _PROBES + 1):
            attempt(held.correction * _STEP ** (2 * step))
    return Verification(tau, samples, tuple(rounds), _best(rounds, tau))


def _next(last: Round, held: Round, broken: Round | None, tau: float) -> float:
    """Where the measured loss would meet tau if it grew with the loss budget; between two ends, halfway."""
    if broken is not None and held.correction:
        return float((held.correction * broken.correction) ** 0.5)
    if not last.measured_nrmse:
        return 4.0 * last.correction
    return last.correction * (tau / last.measured_nrmse) ** 2


def _best(rounds: Sequence[Round], tau: float) -> int:
    within = [i for i, one in enumerate(rounds) if one.measured_nrmse <= tau]
    return max(within, key=lambda i: (rounds[i].gain, -rounds[i].measured_nrmse))
