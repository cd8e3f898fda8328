"""Gradient sensitivity of the loss (eq. 12 to 24): one forward and backward pass prices every format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.libraries.torch import parameters_of
from inc_mp_plugin.model.batches import batch_size, is_packed, sample_lengths, samples, told_nan
from inc_mp_plugin.model.experts import layer_of
from inc_mp_plugin.model.losses import check_labels, sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.scales.methods import CHANNEL, WEIGHT
from inc_mp_plugin.sensitivity.drift import with_drift
from inc_mp_plugin.sensitivity.expert_taps import whole_layers
from inc_mp_plugin.sensitivity.nonfinite import where_not_finite
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.rows import Rows, concatenate, join
from inc_mp_plugin.sensitivity.taps import Taps, largest_magnitude
from inc_mp_plugin.sensitivity.totals import MixedSamplesError

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.scales.methods import Scales
    from inc_mp_plugin.sensitivity.rounded import Errors

# Gradients of FP16 models underflow below 6e-8; they are computed scaled up by this power of two.
_SCALE = {torch.float16: 2.0**12}
_ROUNDING = 0.1  # far more than kernels differ by, relative to a loss


def measure_sensitivity(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Any],
    loss_fn: LossFunction | None = None,
    *,
    scales: Scales | None = None,
    formats: Sequence[str] = (),
) -> Sensitivity:
    """Measure the sensitivity of every op of a graph, sample by sample.

    With z_i the extended input of an op in sample i (its inputs, and its weight; eq. 12 to 14) and
    g_i the loss of the sample::

        s_i = || z_i * dg_i/dz_i ||^2                               (eq. 21)
        s   = mean_i s_i                                            (eq. 23)

    so that the loss MSE of the op in a format is d = alpha_format s (eq. 22, 24). The gradient belongs
    to this op alone, even where another op reads the same tensor. The gradient of a weight is formed for
    one sample at a time, squared, summed and dropped. The result does not depend on the batch size.

    With scales, and beyond the paper, the error q of INC's own rounding of z stands in the place of the
    noise alpha z^2 that is expected in a format. The scales come from the maxabs over all batches (one
    more forward pass)::

        d_i = || q_i * dg_i/dz_i ||^2,  q = dequantize(quantize(z)) - z

    Then the drift of the mean loss with everything rounded is measured, too (`sensitivity.drift`, one more
    forward pass).

    Args:
        model: runs in evaluation mode and in its own precision, and leaves as it came.
        graph: from `capture`.
        batches: a list, `DataLoader` or generator of tensors, tuples or dicts; the first axis counts samples.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; None for the loss that
            transformers trains such a model with.
        scales: how INC scales to FP8; without them, no rounding error is measured.
        formats: FP8 formats whose rounding error is measured under these scales.

    Returns:
        Loss and sensitivities per sample, and d_i per format. Ops that no batch ran, such as experts that no
        token was sent to, are left out, and named in a warning of the logger `inc_mp_plugin`.

    Raises:
        InputError: there is no batch; a loss is not one number per sample, or has no gradient; or formats
            are not FP8, or come without scales.
        NonFiniteError: a NaN or an infinity; the text names the op.
    """
    model, batches = unwrapped(model), plain_batches(batches)
    rounding = observe_rounding(model, graph, batches, loss_fn, scales=scales, formats=formats)
    rows = sensitivity_rows(model, graph, batches, loss_fn, rounding=rounding)
    sensitivity = with_weights(model, join(graph, list(rows)))
    if rounding is None:
        return sensitivity
    return with_drift(model, graph, batches, loss_fn, rounding=rounding, sensitivity=sensitivity)


def with_weights(model: nn.Module, sensitivity: Sensitivity) -> Sensitivity:
    """Return the same sensitivities, with the maxabs of the ops' weights and of their output channels."""
    channels = []
    with as_measured(model):
        for name in sensitivity.ops:
            weight = parameters_of(module_of(model, name)).get("weight")
            rows = torch.full((1, 1), torch.inf) if weight is None else weight.detach().flatten(1)
            channels.append(largest_magnitude(rows, dim=1).double().cpu().numpy())
    maxabs = {
        **sensitivity.maxabs,
        WEIGHT: np.array([maxima.max() for maxima in channels]),
        CHANNEL: np.array([maxima.min() for maxima in channels]),
    }
    return replace(sensitivity, maxabs=maxabs)


def sensitivity_rows(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None = None,
    *,
    rounding: Errors | None = None,
    first: int = 1,
) -> Iterator[Rows]:
    """Yield the rows of each batch in turn: `measure_sensitivity`, in steps.

    Between two steps the model is as it came.

    Args:
        model: as in `measure_sensitivity`.
        graph: from `capture`.
        batches: as in `measure_sensitivity`.
        loss_fn: as in `measure_sensitivity`.
        rounding: rounding errors q in some formats, or their root mean square; without, none is measured.
        first: number of the first sample, for the texts of errors.

    Raises:
        InputError: a loss is not one number per sample, or has no gradient.
        NonFiniteError: a NaN or an infinity; the text names the op.
    """
    separable: bool | None = None
    contrastive: bool | None = None
    measure = partial(_measure, model, graph, loss_fn=loss_fn, rounding=rounding)
    for batch in batches:
        if loss_fn is None:
            check_labels(model, batch, first)
        with as_measured(model):
            if separable is None and batch_size(batch) > 1:
                separable = _separable(model, graph, batch, loss_fn)
            if separable is False and contrastive is None and batch_size(batch) > 1:
                contrastive = _contrastive(model, batch, loss_fn)
            try:
                rows = _rows(measure, batch, together=bool(separable), contrastive=bool(contrastive))
            except NonFiniteError as error:
                message = f"{error}{told_nan(batch, first)}"
                raise NonFiniteError(message) from error
        yield rows
        first += batch_size(batch)


def _rows(measure: Callable[..., Rows], batch: Batch, *, together: bool, contrastive: bool) -> Rows:
    """Measure the rows of a batch: all samples at once where their rows are separate, else one by one.

    The loss of one sample is of the whole batch where samples are told from each other, or packed.
    """
    if together:
        # A tensor of this very batch may mix samples all the same: tokens routed to an expert.
        with suppress(MixedSamplesError):
            return measure(batch)
    numbers = range(batch_size(batch))
    if contrastive or is_packed(batch):
        return concatenate([measure(batch, loss_of=i) for i in numbers])
    return concatenate([measure(samples(batch, i, i + 1)) for i in numbers])


def _contrastive(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> bool:
    """Tell whether a sample's loss depends on the batch's other samples, by more than rounding."""
    if is_packed(batch):
        return False
    with torch.no_grad():
        pair = samples(batch, 0, 2)
        beside, alone = (sample_losses(model, part, loss_fn)[0] for part in (pair, samples(pair, 0, 1)))
    return not bool(torch.isclose(beside, alone, rtol=_ROUNDING, atol=0.0))


def _separable(model: nn.Module, graph: Graph, batch: Batch, loss_fn: LossFunction | None) -> bool:
    """Tell whether row i of every tensor belongs to sample i alone.

    Tried on two samples: the gradient of the first sample's loss must not reach rows of the second sample.
    """
    # Rows of an expert in a list are tokens: they can be as many as the samples and yet belong to others.
    layers = whole_layers(model, graph)
    in_lists = any(op.share < 1 and layer_of(op.name) not in layers for op in graph.ops)
    if in_lists or is_packed(batch):
        return False
    pair = samples(batch, 0, 2)
    try:
        with Taps(model, graph, 2, tokens=sample_lengths(batch), inputs_only=True) as taps:
            losses = _losses(model, pair, loss_fn)
            torch.autograd.backward(losses[0])
    except MixedSamplesError:
        return False
    return not bool(taps.totals.input[1].any())


def _measure(
    model: nn.Module,
    graph: Graph,
    batch: Batch,
    *,
    loss_fn: LossFunction | None,
    rounding: Errors | None,
    loss_of: int | None = None,
) -> Rows:
    """Measure the rows of a batch, or the one row of its sample `loss_of` over all that the batch holds."""
    size = 1 if loss_of is not None else batch_size(batch)
    with Taps(model, graph, size, rounding, tokens=sample_lengths(batch)) as taps:
        losses = _losses(model, batch, loss_fn)
        if loss_of is not None:
            losses = losses[loss_of : loss_of + 1]
        scale = _SCALE.get(next((p.dtype for p in model.parameters()), torch.float32), 1.0)
        torch.autograd.backward(losses, torch.full_like(losses, scale))
        taps.finish()
        rows = _to_rows(losses, taps, scale)
    parts = (rows.loss, rows.input, rows.weight, *rows.rounding.values())
    if not all(np.isfinite(part).all() for part in parts):
        raise NonFiniteError(where_not_finite(model, graph, batch, loss_fn, rows=rows))
    return rows


def _to_rows(losses: torch.Tensor, taps: Taps, scale: float) -> Rows:
    totals = taps.totals
    return Rows(
        losses.detach().double().cpu().numpy(),
        totals.input.cpu().numpy() / scale**2,
        totals.weight.cpu().numpy() / scale**2,
        taps.called,
        totals.largest.cpu().numpy()[None],
        {format_name: part.cpu().numpy() / scale**2 for format_name, part in totals.rounding.items()},
        {key: part.cpu().numpy() / scale**2 for key, part in totals.second.items()},
    )


def _losses(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> torch.Tensor:
    losses = sample_losses(model, batch, loss_fn)
    if not losses.requires_grad:
        message = "the loss has no gradient; loss_fn must not detach it or switch gradients off"
        raise InputError(message)
    return losses
