"""verification.json: the closed loop, which corrects the loss budget until tau surely holds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Measured, Verification, verdict
from inc_mp_plugin.evaluate.closed_loop import MOST_PLANS, close_loop
from inc_mp_plugin.evaluate.interval import measured_nrmse
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.store import Json

if TYPE_CHECKING:
    from inc_mp_plugin.stages.loss_meter import LossMeter

VERIFICATION = artefact_of(Verification, "verification")


def verification_stage(
    meter: LossMeter, plan_at: Callable[[float], Plan], depends_on: Json, out: Path
) -> Verification:
    """Close the loop over plans for corrected loss budgets, or read verification.json.

    Args:
        meter: measures losses, on samples that serve nothing else.
        plan_at: makes the plan for a correction of the loss budget.
        depends_on: everything that the plans follow from.
        out: folder of the artefacts.
    """
    level = meter.verify_confidence

    def make() -> Verification:
        numbers = count(1)

        def measure(plan: Plan) -> Measured:
            say(f"verify: plan {next(numbers)} of at most {MOST_PLANS}, {len(plan.quantized)} ops")
            meter.check(plan)
            measured = measured_nrmse(meter.losses(plan.quantized), meter.losses(()), level)
            say(
                f"verify: NRMSE {plan.nrmse:.4g} predicted, "
                f"{with_interval(measured.nrmse, measured.interval)} measured "
                f"(tau {plan.tau:.6g}: {verdict(measured.interval, plan.tau)})"
            )
            return measured

        return close_loop(plan_at, measure, plan_at(1.0).tau, samples=meter.samples.samples, level=level)

    return VERIFICATION.make(out, {**meter.depends_on, **depends_on, "verify_confidence": level}, make)
