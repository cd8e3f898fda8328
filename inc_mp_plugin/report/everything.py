"""The cost of a lower format everywhere, in a sentence: whether a plan is needed at all."""

from __future__ import annotations

from collections.abc import Iterator

from inc_mp_plugin.core.everything import Everything
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import KLPoint, Validation
from inc_mp_plugin.report.measured import changes_text, with_interval, without_cache
from inc_mp_plugin.report.text import has_tau, threshold
from inc_mp_plugin.targets.layout import expert_role


def everything_text(everything: Everything, plan: Plan, validation: Validation | None) -> str:
    """Say what all ops in the lower format would cost, and if that is within the thresholds of a plan.

    Tokens that change are said where exactly these ops were measured.

    Args:
        everything: the prediction.
        plan: its thresholds count.
        validation: of the plan; None if it was not measured.
    """
    ops, routed = everything.ops, any(map(expert_role, everything.ops))
    costs, least = " and ".join(_costs(everything)), "at least " if routed else ""
    text = (
        f"{everything.format} everywhere ({len(ops)} of {len(plan.formats)} ops) would cost {least}{costs}, "
        "predicted"
    )
    point = None if without_cache(plan) else _measured(everything, validation)
    if point is not None:
        value = with_interval(point.measured, point.measured_interval, ".3g")
        text = f"{text}; measured, {value} nats per {point.per}: {changes_text(point)}"
    limits = list(_limits(everything, plan))
    if not limits:
        return f"{text}."
    above = [limit for limit, exceeded in limits if exceeded]
    if not above and point is not None and plan.kl is not None and point.measured > plan.kl:
        above = [f"kl {plan.kl:.6g}, as measured"]
    if above:
        return f"{text}. That is above {' and '.join(above)}."
    if routed and point is None:
        return (
            f"{text}. That is within {threshold(plan)}, but tokens that change their experts are not in it: "
            "measure such a plan (validation)."
        )
    return f"{text}. That is within {threshold(plan)}: no plan is needed."


def _costs(everything: Everything) -> Iterator[str]:
    if everything.kl is not None:
        yield f"{_value(everything.kl, everything.kl_interval)} nats per token"
    if everything.nrmse is not None:
        yield f"an NRMSE of {_value(everything.nrmse, everything.nrmse_interval)}"


def _value(value: float, interval: Interval | None) -> str:
    return with_interval(value, interval, ".3g")


def _limits(everything: Everything, plan: Plan) -> Iterator[tuple[str, bool]]:
    """Yield the thresholds of a plan, and if the prediction exceeds them; one without a prediction does."""
    tau = plan.tau if has_tau(plan) else None
    of_kl = "kl", plan.kl, everything.kl, everything.kl_interval
    for key, limit, value, interval in (of_kl, ("tau", tau, everything.nrmse, everything.nrmse_interval)):
        if limit is not None:
            held = interval.high if everything.upper and interval is not None else value
            yield f"{key} {limit:.6g}", held is None or held > limit


def _measured(everything: Everything, validation: Validation | None) -> KLPoint | None:
    """Find the measured KL divergence of exactly these ops; None where they were not measured."""
    points = () if validation is None else (validation.plan, *validation.points)
    ops = set(everything.ops)
    return next((point.kl for point in points if point.kl is not None and set(point.quantized) == ops), None)
