"""How well a prediction did, in words, and what of a plan was not measured."""

from __future__ import annotations

from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Validation
from inc_mp_plugin.report.text import NO_TAU, threshold


def without_cache(plan: Plan) -> bool:
    """Tell if losses are measured of a plan's ops alone: INC has no KV cache to put in FP8 on a CPU."""
    return plan.serving.kv_cache == "fp8"


def with_interval(value: float, interval: Interval | None, form: str = ".4g") -> str:
    """Format a measured value with the ends of its interval.

    Args:
        value: what was measured.
        interval: of the value; None where there is none.
        form: format specification of each number.

    Example:
        >>> with_interval(0.002, Interval(0.0015, 0.0028)), with_interval(0.002, None)
        ('0.002 (0.0015 to 0.0028)', '0.002')
    """
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({interval.low:{form}} to {interval.high:{form}})"


def measured_text(seen: Validation, plan: Plan | None = None) -> str:
    """Say how well the prediction did, and if tau held.

    Args:
        seen: what was measured.
        plan: that was measured; without it, a plan that has no KV cache in FP8 is assumed.
    """
    nrmse = with_interval(seen.nrmse, seen.nrmse_interval)
    level = f"; in brackets, a {100 * seen.verify_confidence:g} % interval" if seen.nrmse_interval else ""
    if plan is not None and without_cache(plan):
        first = (
            f"On {seen.samples} held-out samples through INC, the NRMSE of the plan's ops is "
            f"{nrmse}{level}. Its KV cache in FP8 cannot be measured on a CPU: an NRMSE of "
            f"{plan.nrmse:.4g} with the cache (tau {seen.tau:.6g}) is predicted, not measured."
        )
    else:
        told = f"tau {seen.tau:.6g}: {seen.verdict}"
        if plan is not None and threshold(plan) == NO_TAU:
            told = f"{plan.nrmse:.4g} predicted; {NO_TAU}"
        first = (
            f"On {seen.samples} held-out samples through INC, the plan's NRMSE is {nrmse} ({told}{level})."
        )
    return (
        f"{first} Over {len(seen.points)} random plans the correlation of the "
        f"logarithms is {seen.log_correlation:.3f}, mean predicted / mean measured {seen.ratio:.2f}, and "
        f"{seen.covered} of them lie in their interval."
    )
