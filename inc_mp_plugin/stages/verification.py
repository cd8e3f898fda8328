"""verification.json: the closed loop, which corrects the budgets until the thresholds surely hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Verification
from inc_mp_plugin.core.verdicts import Measured
from inc_mp_plugin.evaluate.closed_loop import MOST_PLANS, close_loop
from inc_mp_plugin.evaluate.interval import measured_values
from inc_mp_plugin.report.measured import round_text
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.store import Json

if TYPE_CHECKING:
    from inc_mp_plugin.stages.loss_meter import LossMeter

_SHORTER = "fewer samples (validation.samples) take less"

VERIFICATION = artefact_of(Verification, "verification")


def verification_stage(
    meter: LossMeter, plan_at: Callable[[float], Plan], depends_on: Json, out: Path
) -> Verification:
    """Close the loop over plans for corrected budgets, or read verification.json.

    Args:
        meter: measures losses and KL, on samples that serve nothing else.
        plan_at: makes the plan for a correction of the budgets.
        depends_on: everything that the plans follow from.
        out: folder of the artefacts.
    """
    level = meter.verify_confidence

    def make() -> Verification:
        numbers, given = count(1), meter.thresholds
        floor = None if given.kl is None else meter.floor()
        thresholds = replace(given, floor=floor or 0.0)

        def measure(plan: Plan) -> Measured:
            say(f"verify: plan {next(numbers)} of at most {MOST_PLANS}, {len(plan.quantized)} ops")
            meter.check(plan)
            base, divergence = meter.losses(()), meter.divergence(plan.quantized)
            measured = measured_values(meter.losses(plan.quantized), base, level, divergence)
            say(f"verify: {round_text(measured, plan.nrmse, plan.predicted_kl, thresholds=thresholds)}")
            return measured

        def ahead(plans: Sequence[Plan]) -> None:
            if meter.together:
                for plan in plans:
                    meter.check(plan)
                meter.measure([plan.quantized for plan in plans], "Verification", _SHORTER)

        samples = meter.samples.samples
        loop = close_loop(plan_at, measure, thresholds, samples=samples, level=level, ahead=ahead)
        return replace(loop, through=meter.through)

    return VERIFICATION.make(out, {**meter.depends_on, **depends_on, "verify_confidence": level}, make)
