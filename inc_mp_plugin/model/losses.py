"""The loss of each sample: what the method differentiates and what validation compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import batch_size, call

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inc_mp_plugin.model.batches import Batch

    LossFunction = Callable[[nn.Module, Any], Tensor]

IGNORED_LABEL = -100  # the label that PyTorch's cross entropy leaves out


def language_model_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the mean negative log-likelihood of each sample's tokens, shape (samples,).

    Token t is predicted from the tokens before it. Labels are `batch["labels"]` if given, else the
    input tokens themselves without the padding that `attention_mask` marks; where padding comes first,
    the first token is predicted from nothing, and left out.

    Raises:
        InputError: the batch has no `input_ids`, or a sample has no token to predict.
    """
    from inc_mp_plugin.model.token_losses import token_losses

    if not isinstance(batch, dict) or "input_ids" not in batch:
        message = (
            "a batch without `input_ids` has no language-model loss; "
            "give loss_fn(model, batch) -> tensor with one loss per sample"
        )
        raise InputError(message)
    check_labels(batch)
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    logits = call(model, inputs).logits
    labels = _labels(batch).to(logits.device)
    token_loss = token_losses(logits, labels, IGNORED_LABEL)
    mean: Tensor = token_loss.sum(dim=1) / (labels != IGNORED_LABEL).sum(dim=1)
    return mean


def check_labels(batch: Batch, first: int = 1) -> None:
    """Check that every sample of a batch of tokens has a token to predict.

    Args:
        batch: without `input_ids`, nothing is checked.
        first: number of its first sample.

    Raises:
        InputError: a sample has none; the text holds its number.
    """
    if not isinstance(batch, dict) or "input_ids" not in batch:
        return
    empty = (_labels(batch) == IGNORED_LABEL).all(dim=1).nonzero().flatten().tolist()
    if empty:
        message = (
            f"sample {first + empty[0]} has no token to predict; every sample needs at least two tokens, and "
            f"a label other than {IGNORED_LABEL} for one that is not its first"
        )
        raise InputError(message)


def _labels(batch: dict[str, Any]) -> Tensor:
    """Return the token that follows each token, or the label that is left out."""
    from torch import nn

    labels: Tensor | None = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        mask = batch.get("attention_mask")
        if mask is not None:
            # A padding position sees no token, and kernels differ in what they make of that.
            after_padding = nn.functional.pad(mask[:, :-1] == 0, (1, 0), value=False)
            labels = labels.masked_fill((mask == 0) | after_padding, IGNORED_LABEL)
    # The last token predicts nothing: a label for it costs less than a copy of all logits without it.
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)


def sample_losses(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> Tensor:
    """Run the loss function and check that it returns one loss per sample.

    Args:
        model: to be run.
        batch: of samples.
        loss_fn: from the model and the batch to losses, shape (samples,); `language_model_loss` if None.

    Raises:
        InputError: it returned something else.
    """
    losses = (loss_fn or language_model_loss)(model, batch)
    if tuple(losses.shape) != (batch_size(batch),):
        message = (
            f"loss_fn returned a tensor of shape {tuple(losses.shape)} for {batch_size(batch)} "
            "samples; it must return one loss per sample"
        )
        raise InputError(message)
    return losses
