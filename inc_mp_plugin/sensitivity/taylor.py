"""Gradient sensitivity (eq. 12 to 24): one forward and backward pass prices every format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.modes import as_measured, say_unreached
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.weights import stored_weight
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.scales.methods import CHANNEL, WEIGHT
from inc_mp_plugin.scales.nearest import largest_magnitude
from inc_mp_plugin.sensitivity.drift import rounded_losses, with_drift
from inc_mp_plugin.sensitivity.effort import faster_in_fp32
from inc_mp_plugin.sensitivity.maxabs import Calibration
from inc_mp_plugin.sensitivity.memory import decided
from inc_mp_plugin.sensitivity.one_batch import Measured, Pass
from inc_mp_plugin.sensitivity.rounding import Rounding
from inc_mp_plugin.sensitivity.rows import join
from inc_mp_plugin.sensitivity.sweeps import Sweeps

if TYPE_CHECKING:
    from inc_mp_plugin.core.literals import Memory
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.scales.methods import Scales

_BOTH = ("loss", "kl", "both")


def measure_sensitivity(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    yardstick: Literal["loss", "kl", "both"] = "loss",
    estimate: Estimate | None = None,
    scales: Scales | None = None,
    formats: Sequence[str] = (),
    memory: Memory = "auto",
) -> Sensitivity:
    """Measure the sensitivity of every op of a graph, sample by sample.

    With z_i the extended input of an op in sample i (its inputs, and its weight; eq. 12 to 14) and
    g_i the loss of the sample::

        s_i = || z_i * dg_i/dz_i ||^2                               (eq. 21)
        s   = mean_i s_i                                            (eq. 23)

    so that the loss MSE of the op in a format is d = alpha_format s (eq. 22, 24). The gradient belongs
    to this op alone, even where another op reads the same tensor. The gradient of a weight is formed for
    one sample at a time, squared, summed and dropped. The result does not depend on the batch size.

    The KL divergence takes the same pass. With labels y_t drawn from the model's own distributions
    p(. | t), and L = -sum_t log p(y_t | t), the mean over y of the gradient of log p is 0 and its covariance
    the Fisher information F, which is the Hessian of KL(p || p_q) at an error q = 0. With the text given,
    labels of different positions and samples are independent, so that no cross terms are left::

        KL(q) = q^T F q / 2 = E_y[(q . dL/dz)^2] / 2                + O(q^3)

    summed over positions. With independent errors of elements and ops, E[(q . dL/dz)^2] is the sum of
    ||q * dL/dz||^2 over ops: s_i with L in the place of g, without any labels in the data. Assumed are
    errors that are small, independent of each other and of y; the text as given; and, in a mixture of
    experts, that no token changes its experts. (F as a curvature: Martens, arXiv 1412.1193; true against
    empirical F: Kunstner et al., 1905.12558; squares of a batch's summed gradient: Sophia, 2305.14342; F for
    rounding a language model: YAQA, 2505.22988.)

    With scales, and beyond the paper, the error q of INC's own rounding of z, or of a server's, stands in the
    place of the noise alpha z^2 that is expected in a format. INC's scales come from the maxabs over all
    batches (one more forward pass)::

        d_i = || q_i * dg_i/dz_i ||^2,  q = dequantize(quantize(z)) - z

    Of the KL divergence, errors that are equal add up before they are squared (`reads.add_inputs`): those of
    ops that read one tensor, of tokens that a first layer sees twice, and of keys and values that several
    heads read. Then, of the loss, the drift of its mean with everything rounded is measured, too
    (`sensitivity.drift`, one more forward pass).

    Args:
        model: runs in evaluation mode and in its own precision, and leaves as it came.
        graph: from `capture`.
        batches: a list, `DataLoader` or generator of tensors, tuples or dicts; the first axis counts samples.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; None for the loss that
            transformers trains such a model with.
        yardstick: of the sensitivities: "loss"; "kl"; or "both", those of KL as `kl` of those of the loss.
        estimate: rows, draws and seed of the KL divergence.
        scales: how INC or a server scales to FP8; without them, no rounding error is measured.
        formats: FP8 formats whose rounding error is measured under these scales.
        memory: "high" keeps the activations of all blocks; "low" those of one, and runs the others once more,
            which takes the time of one more forward pass; "auto" decides by what is free. The results are
            the same, bit for bit; within 1e-6 where attention goes by key heads, in another order of sums.

    Returns:
        Loss and sensitivities per row, and d_i per format. Ops that no batch ran, such as experts that no
        token was sent to, are left out, and named in a warning of the logger `inc_mp_plugin`.

    Raises:
        InputError: there is no batch; a loss is not one number per sample, or has no gradient; the model
            predicts no distribution; or formats are not FP8, or come without scales.
        NonFiniteError: a NaN or an infinity; the text names the op.
    """
    if yardstick not in _BOTH:
        raise InputError(unknown("yardstick", yardstick, _BOTH))
    model, batches = unwrapped(model, dispatched=True), plain_batches(batches)
    loss, kl = yardstick != "kl", None if yardstick == "loss" else estimate or Estimate()
    if kl is not None:
        kl.check()
    own = loss_fn if loss else None
    rounding = Rounding.to(scales, formats)
    memory = decided(memory, model, graph, rounded=rounding is not None and loss)
    in_fp32 = faster_in_fp32(model, graph)
    settings = Pass(model, graph, loss_fn, rounding, loss, kl, memory == "low", in_fp32=in_fp32)
    sweeps = Sweeps(settings)
    if rounding is not None and not rounding.scales.per_token:
        calibration = Calibration(model, graph, own, rounding.maxabs, kernels=settings.kernels)
        for _ in sweeps.calibrate(calibration, batches):
            pass
    sensitivity = united(settings, list(sweeps.rows(batches)))
    if rounding is None or not loss:
        return sensitivity
    losses = rounded_losses(settings, rounding, batches, sensitivity.ops, tails=sweeps.tails)
    return with_drift(sensitivity, losses, rounding.formats[0])


def united(settings: Pass, rows: Sequence[Measured]) -> Sensitivity:
    """Unite the rows of all batches, and add the maxabs of weights.

    Raises:
        InputError: there are no rows.
    """
    model, graph = settings.model, settings.graph
    loss = None
    if settings.loss:
        loss = with_weights(model, join(graph, [part["loss"] for part in rows]))
    if settings.kl is not None:
        kl = with_weights(model, join(graph, [part["kl"] for part in rows], settings.kl))
        loss = kl if loss is None else replace(loss, kl=kl)
    if loss is None:
        message = "neither the loss nor the KL divergence was to be measured"
        raise InputError(message)
    say_unreached(graph, loss.ops)
    return loss


def with_weights(model: nn.Module, sensitivity: Sensitivity) -> Sensitivity:
    """Return the same sensitivities, with the maxabs of the ops' weights and of their output channels."""
    channels = []
    with as_measured(model):
        for name in sensitivity.ops:
            weight = stored_weight(model, name)
            rows = torch.full((1, 1), torch.inf) if weight is None else weight.flatten(1)
            channels.append(largest_magnitude(rows, dim=1).double().cpu().numpy())
    maxabs = {
        **sensitivity.maxabs,
        WEIGHT: np.array([maxima.max() for maxima in channels]),
        CHANNEL: np.array([maxima.min() for maxima in channels]),
    }
    return replace(sensitivity, maxabs=maxabs)


def sensitivity_rows(settings: Pass, batches: Iterable[Batch], *, first: int = 1) -> Iterator[Measured]:
    """Yield the rows of each batch in turn, with rounding errors whose scales are known; see `Sweeps.rows`.

    Args:
        settings: the model, and what is measured.
        batches: as in `measure_sensitivity`.
        first: number of the first sample.
    """
    return Sweeps(settings).rows(batches, first=first)
