"""Predicted against measured, through INC: validation.json, and the closed loop of verification.json."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin import result_artefacts, store
from inc_mp_plugin.evaluate.closed_loop import close_loop
from inc_mp_plugin.evaluate.validate import random_plans, validate
from inc_mp_plugin.pace import Work
from inc_mp_plugin.plan import Interval, Plan
from inc_mp_plugin.progress import say, steps
from inc_mp_plugin.results import Validation, Verification
from inc_mp_plugin.sensitivities import Sensitivity
from inc_mp_plugin.solver.uncertainty import loss_interval, sample_losses_mse
from inc_mp_plugin.stage import run_stage

if TYPE_CHECKING:
    from inc_mp_plugin.measured_loss import LossMeter
    from inc_mp_plugin.sensitivities import FloatArray

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
    }
    if plan.serving.kv_cache == "fp8":
        depends_on["kv_cache"] = "fp8 (not measured)"

    def predict(ops: Collection[str]) -> tuple[float, Interval]:
        samples = sample_losses_mse(sensitivity, dict.fromkeys(ops, meter.format), plan.base)
        interval = loss_interval(samples, plan.confidence, sensitivity.drift)
        return sensitivity.with_drift(float(samples.mean())), interval

    def make() -> tuple[Validation, Json]:
        others = random_plans(sensitivity.ops, section.random_plans, section.seed)
        work = Work("Validation", 2 + len(others), noun="plan", shorter=_SHORTER)
        with steps(work) as advance:

            def measure(ops: Collection[str]) -> FloatArray:
                losses = meter.losses(ops)
                advance()
                return losses

            found = validate(measure, predict, plan.quantized, plan.tau, others)
        return found, result_artefacts.validation_to_json(found)

    path, decode = out / "validation.json", result_artefacts.validation_from_json
    return run_stage(path, "validation", depends_on, decode, make)


def verification_stage(
    meter: LossMeter, plan_at: Callable[[float], Plan], depends_on: Json, out: Path
) -> Verification:
    """verification.json: the closed loop over plans for corrected loss budgets.

    Args:
        meter: measures losses.
        plan_at: solves with this correction of the loss budget.
        depends_on: what the plans follow from.
        out: folder of the artefacts.
    """

    def make() -> tuple[Verification, Json]:
        def measure(plan: Plan) -> float:
            nrmse = meter.nrmse(plan)
            say(
                f"verify: {len(plan.quantized)} ops, NRMSE {plan.nrmse:.4g} predicted, {nrmse:.4g} measured"
                f" (tau {plan.tau:.6g})"
            )
            return nrmse

        found = close_loop(plan_at, measure, plan_at(1.0).tau, meter.section.samples)
        return found, asdict(found)

    path = out / "verification.json"
    decode = result_artefacts.verification_from_json
    return run_stage(path, "verification", {**meter.depends_on, **depends_on}, decode, make)
