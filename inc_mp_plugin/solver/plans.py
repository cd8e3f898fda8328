"""The plan that a choice makes, with what is predicted of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.solver.program import Program, Totals
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, predict


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a plan: the strategy, its thresholds, and the end of the solve (see `Plan`).

    Without a tau the plan's own loss MSE is its loss budget.
    """

    strategy: str
    tau: float | None
    status: str
    gap: float | None = None
    seconds: float = 0.0
    correction: float = 1.0
    confidence: float = DEFAULT_CONFIDENCE
    constraint: Yardstick = "loss"
    kl: float | None = None


def make_plan(program: Program, formats: Mapping[str, str], origin: Origin, totals: Totals) -> Plan:
    """Make a plan of these formats.

    Args:
        program: that the formats were chosen by.
        formats: of all ops.
        origin: of the choice.
        totals: of these formats.
    """
    return Plan(
        strategy=origin.strategy,
        objective=program.gains.objective,
        unit=program.gains.unit,
        source=program.gains.source,
        base=program.gains.base,
        noise=program.costs.noise,
        correction=origin.correction,
        confidence=origin.confidence,
        gain=totals.gain,
        largest_gain=program.largest,
        binds=totals.gain < program.largest,
        status=origin.status,
        gap=origin.gap,
        seconds=origin.seconds,
        formats=formats,
        constraint=origin.constraint,
        kl=origin.kl,
        **_loss_fields(program, formats, origin, totals),
        **_kl_fields(program, formats, origin, totals),
    )


def _loss_fields(
    program: Program, formats: Mapping[str, str], origin: Origin, totals: Totals
) -> dict[str, Any]:
    losses, loss_mse = program.costs.loss, program.loss_mse(totals)
    if losses is None or loss_mse is None:
        return dict.fromkeys(("tau", "loss_budget", "loss_mse", "nrmse", "interval"))
    nrmse, tau = math.sqrt(loss_mse / losses.loss_ms), origin.tau
    _, interval = predict(losses, formats, program.gains.base, level=origin.confidence)
    return {
        "tau": nrmse if tau is None else tau,
        "loss_budget": loss_mse if tau is None else origin.correction * tau**2 * losses.loss_ms,
        "loss_mse": loss_mse,
        "nrmse": nrmse,
        "interval": interval,
    }


def _kl_fields(
    program: Program, formats: Mapping[str, str], origin: Origin, totals: Totals
) -> dict[str, Any]:
    model, most = program.costs.kl, program.kl(totals)
    if model is None or most is None:
        return {}
    value, interval = predict(model, formats, program.gains.base, level=origin.confidence)
    # A program's sum holds what ops that read one tensor would add if all of them were lowered.
    return {"predicted_kl": min(value, most), "kl_interval": interval}
