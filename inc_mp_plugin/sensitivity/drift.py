"""The drift of the mean loss when everything is rounded, which the first order cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.model.batches import placed
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.token_losses import mean_losses_in_parts
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.sensitivity.rounded import rounded

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.tail import Tails
    from inc_mp_plugin.sensitivity.one_batch import Pass
    from inc_mp_plugin.sensitivity.rounding import Rounding

# On SmolLM2-135M the factor is a quarter lower for plans that leave the head out; see docs/pages/method.md.
_OF_PLANS = 0.25


def with_drift(sensitivity: Sensitivity, losses: Sequence[FloatArray], format_name: str) -> Sensitivity:
    """Return the same sensitivities, with the drift of the mean loss when everything is rounded.

    With r_i the loss change of sample i when every op runs in the format, and k the KL divergence of all ops
    per token::

        drift = mean_i r_i / k,    standard error: sqrt(sd(r_i)^2 / N + (mean_i r_i / 4)^2) / k

    The second-order change q^T H q / 2 has mean sum E[q^2] H_zz / 2, which adds up over ops, as k does. H is
    close to the Fisher information of the model's predictions, the Hessian of k, up to a factor of how like
    the data is to the model's own text. So one factor serves every plan, and the shift of an op is that
    times its own k. It is not the same for every op: a quarter of it counts as an error of its own. Where the
    KL divergence was not measured, the sum of the ops' loss MSE d stands for k: the gradients of the loss of
    a text are draws of the same kind, of one label per token.

    Args:
        sensitivity: holds the loss of each sample, and the rounding errors of the format.
        losses: of this process's samples when everything is rounded, batch by batch.
        format_name: an FP8 format.

    Raises:
        NonFiniteError: a loss is NaN or infinite when everything is rounded.
    """
    curvature = sensitivity if sensitivity.kl is None else sensitivity.kl
    squares = curvature.rounding[format_name] + curvature.shared.get(format_name, 0.0)
    first_order = float(squares.sum(axis=1).mean()) / curvature.tokens_per_row
    everywhere = ranks.exchange_arrays({"losses": np.concatenate([np.zeros(0), *losses])})
    change = np.concatenate([part["losses"] for part in everywhere]) - sensitivity.loss
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
    settings: Pass,
    rounding: Rounding,
    batches: Iterable[Batch],
    ops: Iterable[str],
    *,
    tails: Tails,
    after: Callable[[FloatArray], None] = lambda losses: None,
) -> list[FloatArray]:
    """Measure the loss of each sample with the inputs and weights of these ops rounded, batch by batch.

    INC's quantize-dequantize computes the same losses on a CPU. The first format of the rounding counts.

    Args:
        settings: the model, and its loss.
        rounding: rounds to the format.
        batches: as in `measure_sensitivity`.
        ops: those that a sample reached. No plan lowers another expert, even if a sample reaches it once
            other ops are rounded.
        tails: of the model.
        after: takes the losses of each batch as soon as they are there.
    """
    model = settings.model
    reached = dict.fromkeys(ops, rounding.formats[0])
    losses = []
    rounding_all = rounded(model, rounding, reached, as_used=settings.low)
    with as_measured(model, settings.kernels), torch.no_grad(), rounding_all:
        for batch in batches:
            tail = tails.of(batch) if settings.low and settings.loss_fn is None else None
            if tail is None:
                own = sample_losses(model, batch, settings.loss_fn)
            else:
                own = mean_losses_in_parts(tail, placed(model, batch))
            losses.append(own.double().cpu().numpy())
            after(losses[-1])
    return losses
