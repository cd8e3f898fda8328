"""The drift of the mean loss when everything is rounded, which the first order cannot tell."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.sensitivity.rounded import rounded

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.sensitivity.rounding import Rounding

# On SmolLM2-135M the factor is a quarter lower for plans that leave the head out; see docs/method.md.
_OF_PLANS = 0.25


def with_drift(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None,
    *,
    rounding: Rounding,
    sensitivity: Sensitivity,
    as_used: bool = False,
) -> Sensitivity:
    """Return the same sensitivities, with the drift of the mean loss measured in one more forward pass.

    With r_i the loss change of sample i when every op runs in the (first) format, and k the KL divergence of
    all ops per token::

        drift = mean_i r_i / k,    standard error: sqrt(sd(r_i)^2 / N + (mean_i r_i / 4)^2) / k

    The second-order change q^T H q / 2 has mean sum E[q^2] H_zz / 2, which adds up over ops, as k does. H is
    close to the Fisher information of the model's predictions, the Hessian of k, up to a factor of how like
    the data is to the model's own text. So one factor serves every plan, and the shift of an op is that
    times its own k. It is not the same for every op: a quarter of it counts as an error of its own. Where the
    KL divergence was not measured, the sum of the ops' loss MSE d stands for k: the gradients of the loss of
    a text are draws of the same kind, of one label per token.

    Args:
        model: leaves as it came.
        graph: from `capture`.
        batches: those that the sensitivities were measured on.
        loss_fn: as in `measure_sensitivity`.
        rounding: rounds to its formats, of which the first counts.
        sensitivity: holds the loss of each sample, and the rounding errors of the format.
        as_used: see `rounded`.

    Raises:
        NonFiniteError: a loss is NaN or infinite when everything is rounded.
    """
    format_name = rounding.formats[0]
    curvature = sensitivity if sensitivity.kl is None else sensitivity.kl
    squares = curvature.rounding[format_name] + curvature.shared.get(format_name, 0.0)
    first_order = float(squares.sum(axis=1).mean()) / curvature.tokens_per_row
    losses = rounded_losses(
        model, graph, batches, loss_fn, rounding=rounding, format_name=format_name, as_used=as_used
    )
    change = losses - sensitivity.loss
    if not np.isfinite(change).all():
        message = (
            f"the loss is NaN or infinite when every op runs in {format_name}; its ops cannot all be priced"
        )
        raise NonFiniteError(message)
    if not first_order:
        return sensitivity
    value = float(change.mean()) / first_order
    # One sample has no spread: then only the drift itself can bound the error.
    spread = float(change.std(ddof=1)) if len(change) > 1 else abs(float(change[0]))
    stderr = math.hypot(spread / math.sqrt(len(change)) / first_order, _OF_PLANS * value)
    return replace(sensitivity, measured_drift=Drift(value, stderr))


def rounded_losses(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None,
    *,
    rounding: Rounding,
    format_name: str,
    as_used: bool = False,
) -> FloatArray:
    """Measure the loss of each sample with the inputs and weights of all ops rounded, shape (samples,).

    INC's quantize-dequantize computes the same losses on a CPU. The samples of all processes are there, in
    the order of the ranks.

    Args:
        model: leaves as it came.
        graph: from `capture`.
        batches: of this process.
        loss_fn: as in `measure_sensitivity`.
        rounding: rounds to the format.
        format_name: an FP8 format.
        as_used: see `rounded`.
    """
    # No plan lowers an expert that no sample reached, even if a sample reaches it once other ops are rounded.
    reached = {op.name: format_name for op in graph.ops if (op.name, 0) in rounding.maxabs}
    with as_measured(model), torch.no_grad(), rounded(model, rounding, reached, as_used=as_used):
        losses = [sample_losses(model, batch, loss_fn).double().cpu().numpy() for batch in batches]
    everywhere = ranks.exchange_arrays({"losses": np.concatenate([np.zeros(0), *losses])})
    return np.concatenate([part["losses"] for part in everywhere])
