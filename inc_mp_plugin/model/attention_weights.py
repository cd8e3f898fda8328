"""The weights of attention, some heads at a time: in FP32, those of all heads would be most of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from inc_mp_plugin.core.footprint import SCORES_AT_ONCE

Weigh = Callable[[Tensor, slice], Tensor]


def attention_weights(scores: Tensor, weigh: Weigh, dtype: torch.dtype) -> Tensor:
    """Compute the weights of attention from its scores, bit-identical to `weigh(scores, slice(None))`.

    Of many scores, a few heads at a time go through `weigh`, once more for their gradients. In place of what
    `weigh` keeps for these, FP32 among it, the scores are kept. In FP32 it keeps no more than the scores.

    Args:
        scores: shape (batch, heads, tokens, keys).
        weigh: takes the scores of some heads, and which heads these are; gives weights of the same shape.
            Its other inputs have no gradients.
        dtype: of the weights; under autocast it may be another one than that of the scores.
    """
    few = scores.numel() <= SCORES_AT_ONCE or torch.compiler.is_compiling()
    if few or (scores.requires_grad and torch.is_grad_enabled() and scores.dtype == torch.float32):
        return weigh(scores, slice(None))
    weights: Tensor = _InGroups.apply(scores, weigh, dtype)  # type: ignore[no-untyped-call]
    return weights


class _InGroups(torch.autograd.Function):
    """Weights of a group of heads after the other, with nothing kept but the scores."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, weigh: Weigh, dtype: torch.dtype) -> Tensor:
        """Compute the weights.

        Args:
            ctx: keeps the scores for their gradient.
            scores: see `attention_weights`.
            weigh: see `attention_weights`.
            dtype: of the weights.
        """
        ctx.save_for_backward(scores)
        ctx.weigh = weigh
        weights = torch.empty_like(scores, dtype=dtype)
        for heads in _groups(scores):
            weights[:, heads] = weigh(scores[:, heads], heads)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Compute the gradient of the scores."""
        (scores,) = ctx.saved_tensors
        of_scores = torch.empty_like(scores)
        for heads in _groups(scores):
            with torch.enable_grad():
                part = scores[:, heads].detach().requires_grad_()
                weights = ctx.weigh(part, heads)
            of_scores[:, heads] = torch.autograd.grad(weights, part, gradient[:, heads])[0]
        return of_scores, None, None


def groups_of_heads(heads: int, scores: int) -> list[slice]:
    """Cut heads into groups of at most SCORES_AT_ONCE scores, of one head at least.

    Args:
        heads: their number.
        scores: of a head, in all samples.

    Example:
        >>> groups_of_heads(3, 2**21)
        [slice(0, 2, None), slice(2, 3, None)]
    """
    size = max(1, SCORES_AT_ONCE // max(1, scores))
    return [slice(first, min(first + size, heads)) for first in range(0, heads, size)]


def _groups(scores: Tensor) -> list[slice]:
    return groups_of_heads(scores.shape[1], scores[:, :1].numel())
