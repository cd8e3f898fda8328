"""KL divergence between the distributions of two models: exact, over vocabularies of any size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from inc_mp_plugin.core.divergence import Divergence
from inc_mp_plugin.model.heads import head_loss
from inc_mp_plugin.model.losses import IGNORED_LABEL, next_labels

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.distributions import Distributions

_BLOCK = 2**17  # logits that are worked on at once: few enough to stay in a processor's cache
_SERIES = tuple(1.0 / math.factorial(power) for power in range(10, 1, -1))
_WITH_FP64 = ("cpu", "cuda")


class Rows(NamedTuple):
    """Contribution of a batch to a `Divergence`.

    `sums` has its arrays as columns, shape (samples, 6), and `kl` the KL of every position that counts, in
    FP32 and nats.
    """

    sums: FloatArray
    kl: FloatArray


def row_blocks(predicted: Distributions) -> Iterator[Tensor]:
    """Yield the logits of the positions that count, in order, a few (rows, classes) at a time."""
    samples, positions = predicted.counted.nonzero(as_tuple=True)
    step = rows_at_once(predicted.logits.shape[-1])
    for start in range(0, len(samples), step):
        part = slice(start, start + step)
        yield predicted.logits[samples[part], positions[part]]


def rows_at_once(classes: int) -> int:
    """Return how many rows of logits make a block."""
    return max(_BLOCK // classes, 1)


def divergence_rows(base: Iterable[Tensor], predicted: Distributions, labels: Tensor | None) -> Rows:
    """Compute the KL divergence of every position from the base model.

    With logits a of the base model and b, at one position::

        KL = sum_v p_v (log p_v - log q_v),    p = softmax a,  q = softmax b

    A rounding changes the logarithms by about the square root of the KL, and the sum cancels all but their
    squares: in FP32, nothing is left of a KL of 1e-9. With x = b - a - sum_v p_v (b_v - a_v), it is::

        KL = log sum_v p_v exp(x_v) = log(1 + sum_v p_v (exp(x_v) - 1 - x_v))

    where no term is negative and nothing cancels. Positions with an x beyond 1 are computed in FP64.

    Args:
        base: blocks of the base model's logits, as `row_blocks` yields them for the same batch.
        predicted: by the other model.
        labels: from `labels_in`.
    """
    samples = predicted.counted.nonzero()[:, 0]
    given = torch.full_like(samples, IGNORED_LABEL) if labels is None else labels[predicted.counted]
    step = rows_at_once(predicted.logits.shape[-1])
    parts = [
        _columns(ours, theirs.to(ours.device), own)
        for ours, theirs, own in zip(row_blocks(predicted), base, torch.split(given, step), strict=True)
    ]
    columns = torch.cat(parts)
    sums = columns.new_zeros(len(predicted.counted), columns.shape[1])
    sums.index_add_(0, samples.to(columns.device), columns)
    return Rows(sums.cpu().numpy(), columns[:, 0].float().cpu().numpy())


def _columns(logits: Tensor, base: Tensor, labels: Tensor) -> Tensor:
    """Compute what each row adds to the arrays of a `Divergence`, in the order of its fields, in FP64."""
    ours, theirs = _floating(logits), _floating(base)
    top, likeliest = theirs.max(dim=-1, keepdim=True)
    weights = (theirs - top).exp_()
    log_sum = top[:, 0].double() + weights.sum(dim=-1).double().log()
    kl, shift = _kl_and_shift(ours, theirs, weights)
    flipped = ours.gather(-1, likeliest)[:, 0] < ours.amax(dim=-1)
    labels = labels.to(ours.device)
    known = labels != IGNORED_LABEL
    index = labels.masked_fill(~known, 0)[:, None]
    own, other = (x.gather(-1, index)[:, 0].double() for x in (ours, theirs))
    base_nll = (log_sum - other).masked_fill(~known, 0.0)
    nll = base_nll + (shift - (own - other)).masked_fill(~known, 0.0)
    return torch.stack([kl, torch.ones_like(kl), flipped.to(kl), nll, base_nll, known.to(kl)], dim=1)


def _kl_and_shift(ours: Tensor, theirs: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the KL divergence of each row, and the rise of log sum exp; `weights` are proportional to p."""
    x, whole = ours - theirs, weights.sum(dim=-1)
    mean = torch.linalg.vecdot(weights, x) / whole
    x -= mean[:, None]
    kl = (torch.linalg.vecdot(weights, _exp_beyond_first_order(x)) / whole).double().log1p()
    shift = mean.double() + kl
    far = ~(x.abs().amax(dim=-1) <= 1.0)  # NaN, too
    if bool(far.any()):
        kl[far], shift[far] = _in_fp64(ours[far].double(), theirs[far].double())
    return kl, shift


def _in_fp64(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    log_q, log_p = ours.log_softmax(dim=-1), theirs.log_softmax(dim=-1)
    p = log_p.exp()
    # A class that the base model rules out (logit -inf) adds nothing.
    kl = (p * (log_p - log_q)).masked_fill_(p == 0, 0.0).sum(dim=-1).clamp_(min=0.0)
    return kl, ours.logsumexp(dim=-1) - theirs.logsumexp(dim=-1)


def _exp_beyond_first_order(x: Tensor) -> Tensor:
    """Compute exp(x) - 1 - x for x between -1 and 1 by its series, x^2 / 2! + x^3 / 3! + ..., by Horner."""
    result = torch.full_like(x, _SERIES[0])
    for factor in _SERIES[1:]:
        result.mul_(x).add_(factor)
    return result.mul_(x).mul_(x)


def _floating(logits: Tensor) -> Tensor:
    """Return logits in FP32, or as they are in FP64, on a device that can add them up in FP64."""
    logits = logits if logits.device.type in _WITH_FP64 else logits.cpu()
    return logits if logits.dtype == torch.float64 else logits.float()


def joined(parts: Sequence[Rows]) -> Divergence:
    """Join the rows of all batches."""
    kl, positions, flips, nll, base_nll, labels = np.concatenate([part.sums for part in parts]).T
    p99 = float(np.quantile(np.concatenate([part.kl for part in parts]), 0.99))
    return Divergence(kl, positions, flips, nll, base_nll, labels, p99)


def labels_in(model: nn.Module, batch: Batch, predicted: Distributions) -> Tensor | None:
    """Find the labels of a batch, one per position, shape (samples, positions).

    `IGNORED_LABEL` stands where there is none; None is returned without labels that fit.

    Args:
        model: that predicted.
        batch: of samples.
        predicted: its distributions.
    """
    if not isinstance(batch, dict):
        return None
    labels: Tensor | None = batch.get("labels")
    if head_loss(model) is None and "input_ids" in batch:
        labels = next_labels(batch)
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    shape, classes = predicted.counted.shape, predicted.logits.shape[-1]
    if labels.shape != shape:
        if shape[1] != 1 or labels.numel() != shape[0]:
            return None
        labels = labels.reshape(shape)
    labels = labels.long()
    return labels.masked_fill((labels < 0) | (labels >= classes), IGNORED_LABEL).to(predicted.counted.device)
