"""validation.json: predicted and measured loss and KL divergence of plans."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Validation
from inc_mp_plugin.evaluate.validate import KLMeasurement, random_plans, validate
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.solver.uncertainty import predict as predict_cost

if TYPE_CHECKING:
    from inc_mp_plugin.core.kl_model import KLModel
    from inc_mp_plugin.core.loss_model import LossModel
    from inc_mp_plugin.stages.loss_meter import LossMeter

    Price = LossModel | KLModel | None

_SHORTER = "fewer of them (validation.random_plans) or fewer samples (validation.samples) take less"


VALIDATION = artefact_of(Validation, "validation")


def validation_stage(meter: LossMeter, losses: Costs, plan: Plan, out: Path) -> Validation:
    """Measure loss MSE and KL divergence of a plan and of random plans: validation.json.

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

    def predict(model: Price, ops: Collection[str]) -> tuple[float, Interval | None] | None:
        if model is None:
            return None
        formats, count = dict.fromkeys(ops, meter.format), heldout.samples
        return predict_cost(model, formats, plan.base, level=plan.confidence, measured=count)

    def make() -> Validation:
        others = random_plans(losses.ops, heldout.random_plans, heldout.seed)
        judge, ops = meter.judge, plan.quantized
        meter.measure([*others, *([ops] if judge is meter else [])], "Validation", _SHORTER)
        if judge is not meter:
            judge.measure([ops], "Validation of the plan", _SHORTER)
        of_loss, of_kl = partial(predict, losses.loss), partial(predict, losses.kl)
        kl = KLMeasurement(meter.divergence, of_kl, plan.kl, meter.floor, judge.divergence)
        measured = validate(
            meter.losses,
            of_loss,
            ops,
            plan.tau,
            others=others,
            level=meter.verify_confidence,
            kl=kl,
            judge=judge.losses,
        )
        return _under_its_conditions(measured, meter)

    return VALIDATION.make(out, _depends_on(meter, losses, plan), make)


def _depends_on(meter: LossMeter, losses: Costs, plan: Plan) -> store.Json:
    models: list[Price] = [losses.loss, losses.kl]
    depends_on = {
        **meter.depends_on,
        "random_plans": meter.samples.random_plans,
        "seed": meter.samples.seed,
        "noise": [store.fingerprint(m.costs(meter.format)) for m in models if m is not None],
        "plan": store.fingerprint(dict(plan.formats)),
        "tau": plan.tau,
        "kl": plan.kl,
        "verify_confidence": meter.verify_confidence,
    }
    if meter.judge is not meter:
        depends_on["plan.through"] = meter.judge.through
    if plan.serving.kv_cache == "fp8":
        depends_on["kv_cache"] = "fp8 (not measured)"
    return depends_on


def _under_its_conditions(validation: Validation, meter: LossMeter) -> Validation:
    """Add what lowered the ops, and how the model ran."""
    attention, threads = meter.conditions()
    through, others, dtype = meter.judge.through, meter.through, meter.dtype
    return replace(
        validation,
        through=through,
        points_through=others if others != through else None,
        attention=attention,
        dtype=dtype,
        threads=threads,
    )
