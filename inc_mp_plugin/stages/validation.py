"""validation.json: predicted and measured loss of plans, in the model that INC converted."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Validation
from inc_mp_plugin.evaluate.validate import random_plans, validate
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.runtime.pace import Work
from inc_mp_plugin.runtime.progress import steps
from inc_mp_plugin.solver.uncertainty import loss_interval, sample_losses_mse

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.stages.loss_meter import LossMeter

_SHORTER = "fewer of them (validation.random_plans) or fewer samples (validation.samples) take less"


VALIDATION = artefact_of(Validation, "validation")


def validation_stage(meter: LossMeter, losses: LossModel, plan: Plan, out: Path) -> Validation:
    """Measure the loss MSE of a plan and of random plans in the model that INC converted: validation.json.

    Args:
        meter: measures losses; its samples give the number of random plans, and their seed.
        losses: prices of the ops that random plans draw from.
        plan: the plan to be measured.
        out: folder of the artefacts.
    """
    meter.check(plan)
    heldout = meter.samples
    # INC quantizes no KV cache on a CPU, so losses are measured without one, and predicted without one here.
    losses = replace(losses, cached=frozenset())
    depends_on = {
        **meter.depends_on,
        "random_plans": heldout.random_plans,
        "seed": heldout.seed,
        "noise": [store.fingerprint(losses.loss_mse(meter.format)), *losses.drift],
        "plan": store.fingerprint(dict(plan.formats)),
        "tau": plan.tau,
        "verify_confidence": meter.verify_confidence,
    }
    if plan.serving.kv_cache == "fp8":
        depends_on["kv_cache"] = "fp8 (not measured)"

    def predict(ops: Collection[str]) -> tuple[float, Interval]:
        samples = sample_losses_mse(losses, dict.fromkeys(ops, meter.format), plan.base)
        interval = loss_interval(samples, plan.confidence, losses.drift, heldout.samples)
        return losses.with_drift(float(samples.mean())), interval

    def make() -> Validation:
        others = random_plans(losses.ops, heldout.random_plans, heldout.seed)
        work = Work("Validation", 2 + len(others), noun="plan", shorter=_SHORTER)
        with steps(work) as advance:

            def measure(ops: Collection[str]) -> FloatArray:
                measured = meter.losses(ops)
                advance()
                return measured

            level = meter.verify_confidence
            return validate(measure, predict, plan.quantized, plan.tau, others=others, level=level)

    return VALIDATION.make(out, depends_on, make)
