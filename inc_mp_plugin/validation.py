"""Validation through INC: one conversion of everything, then a switch for every plan to be measured."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from inc_mp_plugin.evaluate.validate import random_plans, validate
from inc_mp_plugin.formats import alpha
from inc_mp_plugin.losses import sample_losses
from inc_mp_plugin.plan import Graph, Plan, Sensitivity, Validation
from inc_mp_plugin.progress import track
from inc_mp_plugin.store import Partial, fingerprint
from inc_mp_plugin.switching import switch_to_validate

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch
    from inc_mp_plugin.plan import FloatArray
    from inc_mp_plugin.subject import Subject
    from inc_mp_plugin.switch import Switch


def validate_through_inc(
    subject: Subject,
    heldout: Sequence[Batch],
    graph: Graph,
    sensitivity: Sensitivity,
    plan: Plan,
    *,
    low: str,
    count: int,
    seed: int,
    partial: Partial,
) -> Validation:
    """Measure the loss MSE of a plan and of random plans in the model that INC converted.

    Args:
        subject: the model, which INC changes for good: this is the last stage that may use it; its
            batches give INC's scales.
        heldout: samples that calibration has not seen.
        graph: from `capture`.
        sensitivity: from `measure_sensitivity`; its ops are those that random plans draw from.
        plan: from `solve`.
        low: the format of random plans.
        count: number of random plans.
        seed: of their draw.
        partial: keeps the losses of plans already measured.
    """
    switch = switch_to_validate(subject.model, graph, sensitivity.ops, plan.base, low, subject.batches)
    others = random_plans(switch.ops, count, seed)
    measured = partial.load()
    bar = track([(), plan.quantized, *others], "Validation")

    def measure_loss(ops: Collection[str]) -> FloatArray:
        next(bar)
        key = fingerprint({"ops": sorted(ops)})
        if key not in measured:
            switch.select(dict.fromkeys(ops, low))
            measured[key] = _losses(switch, heldout, subject)
            partial.save(measured)
        losses: FloatArray = measured[key]
        return losses

    predicted = {op: alpha(low) * s for op, s in sensitivity.total.items()}
    validation = validate(measure_loss, predicted, plan.quantized, plan.tau, others)
    bar.close()
    partial.remove()
    return validation


@torch.no_grad()
def _losses(switch: Switch, heldout: Sequence[Batch], subject: Subject) -> FloatArray:
    parts = [sample_losses(switch.model, batch, subject.loss_fn) for batch in heldout]
    return np.asarray(torch.cat(parts).double().cpu().numpy())
