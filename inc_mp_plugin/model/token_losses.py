"""Cross entropy of every token: exact for vocabularies of any size, without a copy of all logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.losses import IGNORED_LABEL, next_labels

if TYPE_CHECKING:
    from inc_mp_plugin.model.tail import Tail

_BLOCK = 2**20  # elements that are worked on at once: few enough to stay in a processor's cache


def mean_token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the mean negative log-likelihood of each sample's labels, nats, shape (samples,).

    Args:
        logits: of shape (samples, tokens, classes).
        labels: of shape (samples, tokens); `IGNORED_LABEL` is left out, and one of each sample is another.

    Raises:
        InputError: a label is no class.
    """
    labels = labels.to(logits.device)
    check_classes(labels, logits.shape[-1])
    counts = (labels != IGNORED_LABEL).sum(dim=1)
    mean: Tensor = token_losses(logits, labels, IGNORED_LABEL).sum(dim=1) / counts
    return mean


def mean_losses_in_parts(tail: Tail, batch: Any) -> Tensor:
    """Compute `mean_token_losses` without gradients, with the logits of some tokens at a time.

    Args:
        tail: of a language model.
        batch: on the model's device.
    """
    state, labels = tail.state(batch), next_labels(batch)
    check_classes(labels, tail.classes)
    losses = [
        token_losses(tail.logits(batch, state[:, part]), labels[:, part].to(state.device), IGNORED_LABEL)
        for part in tail.parts(batch)
    ]
    mean: Tensor = torch.cat(losses, dim=1).sum(dim=1) / (labels != IGNORED_LABEL).sum(dim=1)
    return mean


def check_classes(labels: Tensor, classes: int) -> None:
    """Check that labels are classes of a model, or `IGNORED_LABEL`.

    Raises:
        InputError: one is not.
    """
    wrong = labels[(labels != IGNORED_LABEL) & ((labels < 0) | (labels >= classes))]
    if wrong.numel():
        message = f"label {int(wrong[0])} is no class of the model, which has 0 to {classes - 1}"
        raise InputError(message)


def token_losses(logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
    """Compute the negative log-likelihood of each label, in FP32.

    For a token with logits x::

        loss = log sum_v exp(x_v) - x_label

    PyTorch's cross entropy adds up exp(x_v) one by one, in FP32 (the longer the vocabulary, the lower the
    loss comes out), and holds the log-probabilities of all tokens for the gradient. Here the sum is that of
    `logsumexp`, pairwise, and of all logits there is one gradient, and no other copy.

    Args:
        logits: of shape (samples, tokens, vocabulary), of any floating-point dtype.
        labels: of shape (samples, tokens).
        ignored: the label of tokens whose loss, and gradient, is 0.
    """
    losses: Tensor = _TokenLosses.apply(logits, labels, ignored)  # type: ignore[no-untyped-call]
    return losses


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, ignored: int) -> Tensor:
        ctx.ignored = ignored
        log_sums = torch.empty(labels.shape, dtype=torch.float32, device=logits.device)
        picked = torch.empty_like(log_sums)
        for block in blocks(logits):
            x, index = logits[block].float(), _index(labels[block], ignored)
            log_sums[block] = x.logsumexp(dim=-1)
            picked[block] = x.gather(-1, index)[:, 0]
        ctx.save_for_backward(logits, labels, log_sums)
        return (log_sums - picked).masked_fill_(labels == ignored, 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        logits, labels, log_sums = ctx.saved_tensors
        outer = outer.masked_fill(labels == ctx.ignored, 0.0)
        gradient = torch.empty_like(logits)
        for block in blocks(logits):
            part = (logits[block].float() - log_sums[block][:, None]).exp_()
            index = _index(labels[block], ctx.ignored)
            part.scatter_add_(-1, index, part.new_full(index.shape, -1.0))
            gradient[block] = part.mul_(outer[block][:, None])
        return gradient, None, None


def blocks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Yield a sample and a slice of its tokens, few enough to stay in a processor's cache."""
    samples, tokens, vocabulary = logits.shape
    step = max(_BLOCK // vocabulary, 1)
    for sample in range(samples):
        yield from ((sample, slice(start, start + step)) for start in range(0, tokens, step))


def _index(labels: Tensor, ignored: int) -> Tensor:
    return labels.masked_fill(labels == ignored, 0)[:, None]
