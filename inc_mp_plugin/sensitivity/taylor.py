"""Gradient sensitivity of the loss (eq. 12 to 24): one forward and backward pass prices every format."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.libraries.torch import parameters_of
from inc_mp_plugin.model.batches import batch_size, samples, told_nan
from inc_mp_plugin.model.losses import check_labels, sample_losses
from inc_mp_plugin.model.modes import as_measured, say_unreached
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.scales.methods import CHANNEL, INPUT, WEIGHT
from inc_mp_plugin.sensitivity.drift import with_drift
from inc_mp_plugin.sensitivity.nonfinite import where_not_finite
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.taps import MixedSamplesError, Taps, largest_magnitude

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.scales.methods import Scales
    from inc_mp_plugin.sensitivity.rounded import Errors

# Gradients of FP16 models underflow below 6e-8; they are computed scaled up by this power of two.
_SCALE = {torch.float16: 2.0**12}


@dataclass(frozen=True, slots=True)
class Rows:
    """Sensitivities of the samples of one batch: all but `loss` have shape (samples, ops)."""

    loss: FloatArray
    input: FloatArray
    weight: FloatArray
    called: frozenset[str]  # ops that ran in this batch
    largest: FloatArray  # largest magnitude of both inputs, shape (batches, 2, ops); -1 where there is none
    rounding: Mapping[str, FloatArray] = field(default_factory=dict)  # by format
    second: Mapping[str, FloatArray] = field(default_factory=dict)  # as in `Taps`


def measure_sensitivity(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
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

    so that the loss MSE of the op in a format is d = alpha_format s (eq. 22, 24). The gradient is
    that of this op alone: tensors shared with other ops are told apart, and the weight's part is
    formed per sample, squared, summed and dropped. The result does not depend on the batch size.

    With scales, beyond the paper: instead of the noise alpha z^2 expected in a format, the error q that
    INC's rounding of z really makes, under scales from the maxabs over all batches (one more forward
    pass)::

        d_i = || q_i * dg_i/dz_i ||^2,  q = dequantize(quantize(z)) - z

    and how far the mean loss drifts with everything rounded (`sensitivity.drift`, one more forward pass).

    Args:
        model: runs in evaluation mode and in its own precision; it leaves as it came.
        graph: from `capture`.
        batches: tensors, tuples or dicts whose first axis counts samples.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
        scales: how INC scales to FP8; without, no rounding error is measured.
        formats: FP8 formats whose rounding error is measured under these scales.

    Returns:
        Loss and sensitivities per sample, and d_i per format; ops that no batch ran are left out.
        Those, such as experts that no token was sent to, are named in
        a warning of the logger `inc_mp_plugin`.

    Raises:
        InputError: no batch, a loss that is not one number per sample or has no gradient, or formats
            that are not FP8 or come without scales.
        NonFiniteError: a NaN or an infinity; the text names the op.
    """
    if scales is not None:
        batches = list(batches)  # run twice
    rounding = observe_rounding(model, graph, batches, loss_fn, scales, formats)
    sensitivity = join(graph, list(sensitivity_rows(model, graph, batches, loss_fn, rounding)))
    sensitivity = with_weights(model, sensitivity)
    if rounding is None:
        return sensitivity
    return with_drift(model, graph, batches, loss_fn, rounding, sensitivity)


def join(graph: Graph, rows: list[Rows]) -> Sensitivity:
    """Put the rows of all batches together; ops that never ran are named and left out.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        message = "no calibration batch was given; at least one is needed"
        raise InputError(message)
    whole = concatenate(rows)
    say_unreached(graph, whole.called)
    kept = [index for index, op in enumerate(graph.ops) if op.name in whole.called]
    names = tuple(graph.ops[index].name for index in kept)
    rounding = {format_name: part[:, kept] for format_name, part in whole.rounding.items()}
    second = {key: part[:, kept] for key, part in whole.second.items()}
    input, weight = whole.input[:, kept], whole.weight[:, kept]
    largest = whole.largest.max(axis=0)[:, kept]
    maxabs = {INPUT: np.where(largest < 0, np.inf, largest).min(axis=0)}
    return Sensitivity(names, whole.loss, input, weight, rounding, second=second, maxabs=maxabs)


def with_weights(model: nn.Module, sensitivity: Sensitivity) -> Sensitivity:
    """The same sensitivities, with the maxabs of the ops' weights and of their output channels."""
    channels = []
    with as_measured(model):
        for name in sensitivity.ops:
            weight = parameters_of(module_of(model, name)).get("weight")
            one = None if weight is None else largest_magnitude(weight.detach().flatten(1), dim=1).double()
            channels.append(np.array([np.inf]) if one is None else one.cpu().numpy())
    maxabs = {
        **sensitivity.maxabs,
        WEIGHT: np.array([one.max() for one in channels]),
        CHANNEL: np.array([one.min() for one in channels]),
    }
    return replace(sensitivity, maxabs=maxabs)


def concatenate(rows: list[Rows]) -> Rows:
    """Rows of several batches as those of one."""
    return Rows(
        np.concatenate([part.loss for part in rows]),
        np.concatenate([part.input for part in rows]),
        np.concatenate([part.weight for part in rows]),
        frozenset().union(*(part.called for part in rows)),
        np.concatenate([part.largest for part in rows]),
        {
            format_name: np.concatenate([part.rounding[format_name] for part in rows])
            for format_name in rows[0].rounding
        },
        {key: np.concatenate([part.second[key] for part in rows]) for key in rows[0].second},
    )


def sensitivity_rows(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None = None,
    rounding: Errors | None = None,
    *,
    first: int = 1,
) -> Iterator[Rows]:
    """Yield the rows of each batch in turn: `measure_sensitivity`, in steps.

    The model is given back as it came between steps, too. Errors tell the number of a sample, counted from
    `first`.
    """
    # Rows of an expert are tokens: they can be as many as there are samples and yet belong to others.
    separable = False if any(op.share < 1 for op in graph.ops) else None
    for batch in batches:
        if loss_fn is None:
            check_labels(batch, first)
        with as_measured(model):
            if separable is None and batch_size(batch) > 1:
                separable = _separable(model, graph, batch, loss_fn)
            try:
                rows = _rows(model, graph, batch, loss_fn, rounding, together=bool(separable))
            except NonFiniteError as error:
                message = f"{error}{told_nan(batch, first)}"
                raise NonFiniteError(message) from error
        yield rows
        first += batch_size(batch)


def _rows(
    model: nn.Module,
    graph: Graph,
    batch: Batch,
    loss_fn: LossFunction | None,
    rounding: Errors | None,
    *,
    together: bool,
) -> Rows:
    """Rows of a batch, all samples at once where they can be told apart, else one by one."""
    if together:
        try:
            return _measure(model, graph, batch, loss_fn, rounding)
        except MixedSamplesError:
            # A tensor of this very batch mixes samples: tokens routed to an expert.
            pass
    singles = [samples(batch, i, i + 1) for i in range(batch_size(batch))]
    return concatenate([_measure(model, graph, single, loss_fn, rounding) for single in singles])


def _separable(model: nn.Module, graph: Graph, batch: Batch, loss_fn: LossFunction | None) -> bool:
    """Tell whether row i of every tensor belongs to sample i, and to no other.

    Tried on two samples: the gradient of the first one's loss must not reach the second one's rows.
    """
    pair = samples(batch, 0, 2)
    try:
        with Taps(model, graph, 2, inputs_only=True) as taps:
            losses = _losses(model, pair, loss_fn)
            torch.autograd.backward(losses[0])
    except MixedSamplesError:
        return False
    return not bool(taps.input[1].any())


def _measure(
    model: nn.Module, graph: Graph, batch: Batch, loss_fn: LossFunction | None, rounding: Errors | None
) -> Rows:
    with Taps(model, graph, batch_size(batch), rounding) as taps:
        losses = _losses(model, batch, loss_fn)
        scale = _SCALE.get(next((p.dtype for p in model.parameters()), torch.float32), 1.0)
        torch.autograd.backward(losses, torch.full_like(losses, scale))
        taps.finish()
        rows = Rows(
            losses.detach().double().cpu().numpy(),
            taps.input.cpu().numpy() / scale**2,
            taps.weight.cpu().numpy() / scale**2,
            taps.called,
            taps.largest.cpu().numpy()[None],
            {format_name: part.cpu().numpy() / scale**2 for format_name, part in taps.rounding.items()},
            {key: part.cpu().numpy() / scale**2 for key, part in taps.second.items()},
        )
    parts = (rows.loss, rows.input, rows.weight, *rows.rounding.values())
    if not all(np.isfinite(part).all() for part in parts):
        raise NonFiniteError(where_not_finite(model, graph, batch, loss_fn, rows))
    return rows


def _losses(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> torch.Tensor:
    losses = sample_losses(model, batch, loss_fn)
    if not losses.requires_grad:
        message = "the loss has no gradient; loss_fn must not detach it or switch gradients off"
        raise InputError(message)
    return losses
