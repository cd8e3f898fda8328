"""Whether more samples would change the plan."""

from __future__ import annotations

from collections.abc import Callable

from inc_mp_plugin.core.errors import InfeasibleError
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Stability
from inc_mp_plugin.solver.uncertainty import resampled


def stability(
    plan: Plan, losses: LossModel, solve_for: Callable[[LossModel], Plan], draws: int = 20
) -> Stability:
    """Plan again from samples drawn with replacement, as a bootstrap does, and compare.

    Args:
        plan: made from `losses`.
        losses: prices of the ops.
        solve_for: makes a plan as `plan` was made, from other samples.
        draws: how many times. Draws by which no plan at all is within the threshold, because of what the
            consumers fix, are left out and not counted.
    """
    others = []
    for seed in range(draws):
        try:
            others.append(solve_for(resampled(losses, seed)))
        except InfeasibleError:
            continue
    counts = {
        op: sum(one.formats[op] != format_name for one in others) for op, format_name in plan.formats.items()
    }
    changed = {op: count / len(others) for op, count in counts.items() if count}
    gains = [one.gain for one in others] or [plan.gain]
    return Stability(len(others), changed, plan.gain, min(gains), max(gains))
