"""Predicted against measured, through INC: validation.json, and the closed loop of verification.json."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Measured, Validation, Verification, verdict
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.evaluate.closed_loop import MOST_PLANS, close_loop
from inc_mp_plugin.evaluate.interval import measured_nrmse
from inc_mp_plugin.evaluate.validate import random_plans, validate
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.runtime import result_artefacts, store
from inc_mp_plugin.runtime.pace import Work
from inc_mp_plugin.runtime.progress import say, steps
from inc_mp_plugin.runtime.reuse import run_stage
from inc_mp_plugin.solver.uncertainty import loss_interval, sample_losses_mse

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.stages.loss_meter import LossMeter

Json = dict[str, Any]
_SHORTER = "fewer of them (validation.random_plans) or fewer samples (validation.samples) take less"


def validation_stage(meter: LossMeter, sensitivity: Sensitivity, plan: Plan, out: Path) -> Validation:
    """validation.json: the loss MSE of a plan and of random plans in the model that INC converted.

    Args:
        meter: measures losses; its section says how many random plans, and their seed.
        sensitivity: its ops are those that random plans draw from.
        plan: to be measured.
        out: folder of the artefacts.
    """
    meter.check(plan)
    section = meter.section
    # INC quantizes no KV cache on a CPU: what is measured, and so compared with, is without it.
    sensitivity = replace(sensitivity, cached=frozenset())
    depends_on = {
        **meter.depends_on,
        "random_plans": section.random_plans,
        "seed": section.seed,
        "noise": [store.fingerprint(sensitivity.loss_mse(meter.format)), *sensitivity.drift],
        "plan": store.fingerprint(dict(plan.formats)),
        "tau": plan.tau,
        "verify_confidence": meter.verify_confidence,
    }
    if plan.serving.kv_cache == "fp8":
        depends_on["kv_cache"] = "fp8 (not measured)"

    def predict(ops: Collection[str]) -> tuple[float, Interval]:
        samples = sample_losses_mse(sensitivity, dict.fromkeys(ops, meter.format), plan.base)
        interval = loss_interval(samples, plan.confidence, sensitivity.drift, section.samples)
        return sensitivity.with_drift(float(samples.mean())), interval

    def make() -> tuple[Validation, Json]:
        others = random_plans(sensitivity.ops, section.random_plans, section.seed)
        work = Work("Validation", 2 + len(others), noun="plan", shorter=_SHORTER)
        with steps(work) as advance:

            def measure(ops: Collection[str]) -> FloatArray:
                losses = meter.losses(ops)
                advance()
                return losses

            level = meter.verify_confidence
            found = validate(measure, predict, plan.quantized, plan.tau, others, level=level)
        return found, result_artefacts.validation_to_json(found)

    path, decode = out / "validation.json", result_artefacts.validation_from_json
    return run_stage(path, "validation", depends_on, decode, make)


def verification_stage(
    meter: LossMeter, plan_at: Callable[[float], Plan], depends_on: Json, out: Path
) -> Verification:
    """verification.json: the closed loop over plans for corrected loss budgets.

    Args:
        meter: measures losses, on samples that nothing is reported on.
        plan_at: solves with this correction of the loss budget.
        depends_on: what the plans follow from.
        out: folder of the artefacts.
    """
    level = meter.verify_confidence

    def make() -> tuple[Verification, Json]:
        numbers = count(1)

        def measure(plan: Plan) -> Measured:
            say(f"verify: plan {next(numbers)} of at most {MOST_PLANS}, {len(plan.quantized)} ops")
            meter.check(plan)
            seen = measured_nrmse(meter.losses(plan.quantized), meter.losses(()), level)
            say(
                f"verify: NRMSE {plan.nrmse:.4g} predicted, {with_interval(seen.nrmse, seen.interval)} "
                f"measured (tau {plan.tau:.6g}: {verdict(seen.interval, plan.tau)})"
            )
            return seen

        found = close_loop(plan_at, measure, plan_at(1.0).tau, meter.section.samples, level)
        return found, asdict(found)

    path = out / "verification.json"
    decode = result_artefacts.verification_from_json
    depends_on = {**meter.depends_on, **depends_on, "verify_confidence": level}
    return run_stage(path, "verification", depends_on, decode, make)
