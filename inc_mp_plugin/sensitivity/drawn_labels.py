"""Labels drawn from a model's own distributions, and their loss: the way to its KL divergence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from inc_mp_plugin.model.distributions import Distributions
from inc_mp_plugin.model.losses import IGNORED_LABEL
from inc_mp_plugin.model.token_losses import blocks, token_losses

_STEP = 512  # classes whose probabilities are added up together


def drawn_losses(distributions: Distributions, numbers: Sequence[int], *, seed: int, draw: int) -> Tensor:
    """Compute -sum_t log p(y_t) of each sample, for labels y_t drawn from the model, nats, shape (samples,).

    A label stands at every position that counts. Those of a sample depend on the seed, its number and the
    draw alone, whatever batch the sample is in.

    Args:
        distributions: of a batch.
        numbers: of its samples, among those of all processes.
        seed: of all labels.
        draw: number of the draw, for several labels per position.
    """
    labels = draw_labels(distributions, numbers, seed=seed, draw=draw)
    return token_losses(distributions.logits, labels, IGNORED_LABEL).sum(dim=1)


def draw_labels(distributions: Distributions, numbers: Sequence[int], *, seed: int, draw: int) -> Tensor:
    """Draw a label for every position that counts, `IGNORED_LABEL` elsewhere; shape (samples, positions).

    Args:
        distributions: of a batch.
        numbers: of its samples.
        seed: of all labels.
        draw: number of the draw.
    """
    uniform = uniform_numbers(distributions.counted, numbers, seed=seed, draw=draw)
    return labels_at(distributions, uniform)


def uniform_numbers(counted: Tensor, numbers: Sequence[int], *, seed: int, draw: int) -> Tensor:
    """Draw a number from 0 to 1 for every position that counts, in FP64; 0 elsewhere.

    Args:
        counted: positions that count, shape (samples, positions).
        numbers: of the samples.
        seed: of all labels.
        draw: number of the draw.
    """
    uniform = torch.zeros(counted.shape, dtype=torch.float64, device=counted.device)
    for place, number in enumerate(numbers):
        generator = torch.Generator().manual_seed(_seed(seed, number, draw))
        # Padding takes no number, so that it changes no label.
        count = int(counted[place].sum())
        values = torch.rand(count, generator=generator, dtype=torch.float64)
        uniform[place, counted[place]] = values.to(counted.device)
    return uniform


@torch.no_grad()
def labels_at(distributions: Distributions, uniform: Tensor) -> Tensor:
    """Find the label of every position that counts by its uniform number; `IGNORED_LABEL` elsewhere.

    Args:
        distributions: of some positions.
        uniform: a number for each of them, shape (samples, positions).
    """
    logits, counted = distributions
    labels = torch.full(counted.shape, IGNORED_LABEL, device=logits.device)
    for block in blocks(logits):
        x = logits[block].float()
        weights = (x - x.amax(dim=-1, keepdim=True)).exp_()
        labels[block] = _draw(weights, uniform[block])
    return labels.masked_fill_(~counted, IGNORED_LABEL)


def _seed(seed: int, number: int, draw: int) -> int:
    """Compute a seed of what labels depend on."""
    sequence = np.random.SeedSequence([seed, number, draw])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _draw(weights: Tensor, uniform: Tensor) -> Tensor:
    """Draw a class for each row by its weights: the first at which their sum exceeds a share of the whole.

    Added up one by one in FP32, many small weights at the end of a vocabulary would count for nothing; so
    their sums of 512 are added, and then the weights within the chosen 512, in FP64.

    Args:
        weights: not negative, shape (rows, classes).
        uniform: numbers from 0 to 1, shape (rows,).
    """
    classes = weights.shape[1]
    full = classes // _STEP * _STEP
    sums = weights[:, :full].reshape(len(weights), -1, _STEP).sum(dim=2)
    parts = torch.cat([sums, weights[:, full:].sum(dim=1, keepdim=True)], dim=1).double()
    reached = parts.cumsum(dim=1)
    share = uniform[:, None] * reached[:, -1:]
    chosen = torch.searchsorted(reached, share, right=True).clamp_(max=reached.shape[1] - 1)
    rest = share - (reached - parts).gather(1, chosen)
    places = chosen * _STEP + torch.arange(_STEP, device=weights.device)
    inside = weights.gather(1, places.clamp(max=classes - 1)).double() * (places < classes)
    within = torch.searchsorted(inside.cumsum(dim=1), rest, right=True)
    return (chosen * _STEP + within.clamp_(max=_STEP - 1))[:, 0].clamp_(max=classes - 1)
