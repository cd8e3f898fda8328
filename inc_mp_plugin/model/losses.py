"""The loss of each sample: what the method differentiates and what validation compares."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import batch_size, call, placed

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
    from inc_mp_plugin.model.token_losses import mean_token_losses

    if not isinstance(batch, dict) or "input_ids" not in batch:
        message = (
            "a batch without `input_ids` has no language-model loss; "
            "give loss_fn(model, batch) -> tensor with one loss per sample"
        )
        raise InputError(message)
    check_labels(model, batch)
    return mean_token_losses(logits_of(model, batch), next_labels(batch))


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    """Run a model on a batch, and return its logits.

    Raises:
        InputError: the model has none.
    """
    logits: Tensor | None = getattr(call(model, batch), "logits", None)
    if logits is None:
        message = (
            f"a {type(model).__name__} gives no logits, so it has no loss of its own; "
            "give loss_fn(model, batch) -> tensor with one loss per sample"
        )
        raise InputError(message)
    return logits


def check_labels(model: nn.Module, batch: Batch, first: int = 1) -> None:
    """Check that a language model knows the tokens of a batch, and has one to predict in every sample.

    Args:
        model: whose class decides what is predicted.
        batch: without `input_ids`, nothing is checked.
        first: number of its first sample.

    Raises:
        InputError: a sample has none, and the text holds its number; or tokens or labels do not fit.
    """
    from inc_mp_plugin.model.heads import head_loss

    if not isinstance(batch, dict) or "input_ids" not in batch or head_loss(model) is not None:
        return
    _check_tokens(model, batch)
    empty = (next_labels(batch) == IGNORED_LABEL).all(dim=1).nonzero().flatten().tolist()
    if empty:
        message = (
            f"sample {first + empty[0]} has no token to predict; every sample needs at least two tokens, and "
            f"a label other than {IGNORED_LABEL} for one that is not its first"
        )
        raise InputError(message)


def _check_tokens(model: nn.Module, batch: dict[str, Any]) -> None:
    ids, labels = batch["input_ids"], batch.get("labels")
    if labels is not None and labels.shape != ids.shape:
        message = (
            f"labels are of shape {tuple(labels.shape)}, input_ids of {tuple(ids.shape)}; "
            f"give one label per token, {IGNORED_LABEL} where there is none"
        )
        raise InputError(message)
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    known = getattr(embeddings, "num_embeddings", None)
    reads_images = hasattr(
        getattr(model, "config", None), "vision_config"
    )  # marks of images may be any number
    if known is not None and not reads_images and int(ids.max()) >= known:
        message = f"input_ids hold token {int(ids.max())}, but the model knows {known}; use its own tokenizer"
        raise InputError(message)


def next_labels(batch: dict[str, Any]) -> Tensor:
    """Return the token that follows each token, or the label that is left out."""
    from torch import nn

    labels: Tensor | None = batch.get("labels")
    if labels is None:
        labels = batch["input_ids"]
        mask, positions = batch.get("attention_mask"), batch.get("position_ids")
        if positions is not None and positions.shape == labels.shape:
            # Packed documents: the first token of each is predicted from none of its own.
            labels = labels.masked_fill(positions == 0, IGNORED_LABEL)
        if mask is not None:
            # A padding position sees no token, and kernels differ in what they make of that.
            after_padding = nn.functional.pad(mask[:, :-1] == 0, (1, 0), value=False)
            labels = labels.masked_fill((mask == 0) | after_padding, IGNORED_LABEL)
    # The last token predicts nothing: a label for it costs less than a copy of all logits without it.
    return nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)


def default_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Compute the loss of each sample that transformers trains such a model with, shape (samples,).

    Raises:
        InputError: the batch has no labels that the model's head needs, or there is no such loss.
    """
    from inc_mp_plugin.model.heads import head_loss

    loss = head_loss(model)
    if loss is None:
        return language_model_loss(model, batch)
    if not isinstance(batch, dict):
        message = f"the loss of a {type(model).__name__} needs batches that are dicts; else give loss_fn"
        raise InputError(message)
    return loss(model, batch)


def sample_losses(model: nn.Module, batch: Batch, loss_fn: LossFunction | None) -> Tensor:
    """Run the loss function on the model's device, and check that it returns one loss per sample.

    Args:
        model: to be run.
        batch: of samples.
        loss_fn: from the model and the batch to losses, shape (samples,); `default_loss` if None.

    Raises:
        InputError: it returned something else.
    """
    losses = (loss_fn or default_loss)(model, placed(model, batch))
    if not hasattr(losses, "shape"):
        message = (
            f"loss_fn returned {type(losses).__name__}; it must return a tensor with one loss per sample"
        )
        raise InputError(message)
    if tuple(losses.shape) != (batch_size(batch),):
        message = (
            f"loss_fn returned a tensor of shape {tuple(losses.shape)} for {batch_size(batch)} "
            "samples; it must return one loss per sample"
        )
        raise InputError(message)
    return losses
