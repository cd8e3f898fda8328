"""Measured values in words: how well a prediction did, and which part of a plan was not measured."""

from __future__ import annotations

from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Validation
from inc_mp_plugin.report.text import has_tau, span, threshold


def without_cache(plan: Plan) -> bool:
    """Tell if losses are measured of a plan's ops alone: INC has no KV cache to put in FP8 on a CPU."""
    return plan.serving.kv_cache == "fp8"


def with_interval(value: float, interval: Interval | None, form: str = ".4g") -> str:
    """Format a measured value with the ends of its interval.

    Args:
        value: the measured value.
        interval: of the value; None where there is none.
        form: format specification of each number.

    Example:
        >>> with_interval(0.002, Interval(0.0015, 0.0028)), with_interval(0.002, None)
        ('0.002 (0.0015 to 0.0028)', '0.002')
    """
    if interval is None:
        return f"{value:{form}}"
    return f"{value:{form}} ({span(interval, form)})"


def measured_text(validation: Validation, plan: Plan) -> str:
    """Say how well the prediction did, and if tau held.

    Args:
        validation: of the plan.
        plan: that was measured.
    """
    nrmse, level = with_interval(validation.nrmse, validation.nrmse_interval), ""
    if validation.nrmse_interval:
        level = f"; in brackets, a {100 * validation.verify_confidence:g} % interval"
    if without_cache(plan):
        outcome = (
            f"NRMSE of the plan's ops is {nrmse}{level}. Its KV cache in FP8 cannot be measured on a CPU: an "
            f"NRMSE of {plan.nrmse:.4g} with the cache (tau {validation.tau:.6g}) is predicted, not measured."
        )
    else:
        judged = f"tau {validation.tau:.6g}: {validation.verdict}"
        if not has_tau(plan):
            judged = f"{plan.nrmse:.4g} predicted; {threshold(plan)}"
        outcome = f"plan's NRMSE is {nrmse} ({judged}{level})."
    return (
        f"On {validation.samples} held-out samples through INC, the {outcome} Over {len(validation.points)} "
        f"random plans the correlation of the logarithms is {validation.log_correlation:.3f}, mean predicted "
        f"/ mean measured {validation.ratio:.2f}, and {validation.covered} of them lie in their interval."
    )
