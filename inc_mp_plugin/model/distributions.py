"""The distributions that a model predicts: logits, and the positions that count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import batch_size, call, placed
from inc_mp_plugin.model.heads import (
    answer_losses,
    class_losses,
    head_loss,
    pair_losses,
    problem_of,
    span_losses,
)
from inc_mp_plugin.model.losses import IGNORED_LABEL, next_labels

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch


class Distributions(NamedTuple):
    """Categorical distributions of a batch.

    `logits` has shape (samples, positions, classes). `counted`, of shape (samples, positions), is False where
    a position is padding, or left out by its label.
    """

    logits: Tensor
    counted: Tensor


def distributions(model: nn.Module, batch: Batch) -> Distributions:
    """Run a model on a batch, and return the distributions that it predicts.

    Raises:
        InputError: the model predicts no single categorical distribution per position.
    """
    batch = placed(model, batch)
    return distributions_in(call(model, batch), model, batch)


def distributions_in(output: Any, model: nn.Module, batch: Batch) -> Distributions:
    """Read the distributions in the output of a model.

    The positions that count are those of the loss: every token that is predicted from others before it, or
    the tokens that have a label. Labels are not needed: without them, every position that is no padding
    counts.

    Args:
        output: of the model's forward pass.
        model: that made it.
        batch: on the model's device.

    Raises:
        InputError: the model predicts no single categorical distribution per position, or nothing counts.
    """
    head = head_loss(model)
    if head in (span_losses, pair_losses):
        message = (
            f"a {type(model).__name__} has several outputs, so that the KL divergence of one distribution "
            "does not describe it; give tau instead of kl"
        )
        raise InputError(message)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    size = batch_size(batch)
    if not isinstance(logits, Tensor) or not 2 <= logits.dim() <= 3 or len(logits) != size:
        message = (
            f"a {type(model).__name__} gives no logits of shape (samples, classes) or (samples, positions, "
            "classes), so that its outputs have no KL divergence; give tau instead of kl"
        )
        raise InputError(message)
    if head is class_losses or logits.dim() == 2:
        _check_one_class(model, batch, logits)
        logits = logits.reshape(size, 1, -1)
        return Distributions(logits, torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device))
    counted = _counted(model, batch, logits)
    check_counted(counted)
    return Distributions(logits, counted)


def check_counted(counted: Tensor) -> None:
    """Check that some position of each sample counts.

    Raises:
        InputError: none of a sample does.
    """
    empty = (~counted.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        message = f"sample {1 + empty[0]} of a batch has no position that counts, so it has no KL divergence"
        raise InputError(message)


def _check_one_class(model: nn.Module, batch: Batch, logits: Tensor) -> None:
    labels = batch.get("labels") if isinstance(batch, dict) else None
    problem = problem_of(model, labels, logits)
    if problem != "single_label_classification":
        message = (
            f"a {type(model).__name__} for {problem.replace('_', ' ')} predicts no distribution over "
            "classes, so that it has no KL divergence; give tau instead of kl"
        )
        raise InputError(message)


def _counted(model: nn.Module, batch: Batch, logits: Tensor) -> Tensor:
    """Tell which positions count, shape (samples, positions)."""
    everything = torch.ones(logits.shape[:2], dtype=torch.bool, device=logits.device)
    if not isinstance(batch, dict):
        return everything
    head = head_loss(model)
    labels: Tensor | None = batch.get("labels")
    mask: Tensor | None = batch.get("attention_mask")
    if head is None and "input_ids" in batch:
        # An image's encoder may put more positions before the text than there are tokens.
        counted = next_labels(batch) != IGNORED_LABEL
        if counted.shape == everything.shape:
            return counted.to(logits.device)
    if labels is not None and labels.shape == everything.shape:
        return (labels != IGNORED_LABEL).to(logits.device)
    if head is not answer_losses and mask is not None and mask.shape == everything.shape:
        return (mask != 0).to(logits.device)
    return everything
