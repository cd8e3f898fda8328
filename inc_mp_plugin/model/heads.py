"""The loss of each sample by what a model is: where there is one answer, nobody has to write it down.

These are the losses of transformers, sample by sample: the mean over a sample's own labels, where
transformers takes one mean over a whole batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import call, can_generate
from inc_mp_plugin.model.losses import IGNORED_LABEL, logits_of
from inc_mp_plugin.model.token_losses import check_classes, mean_token_losses

if TYPE_CHECKING:
    HeadLoss = Callable[[nn.Module, dict[str, Any]], Tensor]


def head_loss(model: nn.Module) -> HeadLoss | None:
    """Find the loss of a model of transformers by the head that its class names; None for any other model.

    Args:
        model: unwrapped, such as a `BertForSequenceClassification`.
    """
    adapted: Any = getattr(model, "get_base_model", None)  # of PEFT
    model = model if adapted is None else adapted()
    name = type(model).__name__
    if is_encoder_decoder(model) and (name.endswith("ForConditionalGeneration") or can_generate(model)):
        return answer_losses
    if hasattr(model, "logit_scale") and hasattr(model, "get_image_features"):
        return pair_losses
    return next((loss for ending, loss in _BY_ENDING.items() if name.endswith(ending)), None)


def is_encoder_decoder(model: nn.Module) -> bool:
    """Tell if a model of transformers reads one sequence and writes another one."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def answer_losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Compute the mean negative log-likelihood of each answer's tokens, shape (samples,).

    An encoder-decoder model shifts `labels` itself to make its decoder's inputs, so logit t is of label t.
    """
    return _mean_token_losses(logits_of(model, batch), _label(model, batch))


def token_label_losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Compute the mean cross entropy of the labels of each sample's own tokens, shape (samples,)."""
    return _mean_token_losses(logits_of(model, batch), _label(model, batch))


def class_losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Compute the loss of each sample's class, classes or numbers, shape (samples,).

    `config.problem_type` decides between cross entropy, binary cross entropy and squares. Without it, a
    single output is a number, integer labels are classes, floating-point labels are independent classes.
    """
    labels = _label(model, batch)
    logits = logits_of(model, batch).float()
    problem = problem_of(model, labels, logits)
    labels = labels.to(logits.device)
    if problem == "single_label_classification":
        if labels.numel() != len(logits):
            message = (
                f"labels are of shape {tuple(labels.shape)} for {len(logits)} samples, each of one class; "
                "give floating-point labels for several classes, or set config.problem_type"
            )
            raise InputError(message)
        check_classes(labels, logits.shape[-1])
        return functional.cross_entropy(logits, labels.reshape(-1), reduction="none")
    if labels.numel() != logits.numel():
        message = (
            f"labels are of shape {tuple(labels.shape)}, and {problem} needs {tuple(logits.shape)}; "
            "give these, or set config.problem_type"
        )
        raise InputError(message)
    labels = labels.reshape(logits.shape).float()
    if problem == "regression":
        return (logits - labels).square().mean(dim=1)
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    return losses.mean(dim=1)


def problem_of(model: nn.Module, labels: Tensor | None, logits: Tensor) -> str:
    """Name the problem that a classifier solves, as transformers does in `config.problem_type`.

    Args:
        model: with or without a configuration.
        labels: of a batch, if there are any.
        logits: of the batch.
    """
    problem: str | None = getattr(getattr(model, "config", None), "problem_type", None)
    if problem is None:
        several = labels is not None and labels.is_floating_point()
        kind = "multi_label" if several else "single_label"
        problem = "regression" if logits.shape[-1] == 1 else f"{kind}_classification"
    return problem


def span_losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Compute the mean cross entropy of the start and the end of each answer in its text, shape (samples,).

    A position beyond the text is left out, as in transformers.
    """
    starts, ends = (_label(model, batch, key) for key in ("start_positions", "end_positions"))
    output = call(model, batch)
    losses = []
    for logits, positions in ((output.start_logits, starts), (output.end_logits, ends)):
        beyond = logits.shape[1]
        inside = positions.reshape(-1).to(logits.device).clamp(0, beyond)
        losses.append(functional.cross_entropy(logits.float(), inside, ignore_index=beyond, reduction="none"))
    return (losses[0] + losses[1]) / 2


def pair_losses(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """Compute how well each text is told from the batch's others by its image, and the other way round.

    The contrastive loss of CLIP, the mean of two cross entropies; for SigLIP, of the logarithms of its
    sigmoids. A sample's loss depends on all samples of its batch.
    """
    logits = call(model, batch).logits_per_text.float()
    own = torch.arange(len(logits), device=logits.device)
    if hasattr(model, "logit_bias"):
        signs = 2 * torch.eye(len(logits), device=logits.device) - 1
        return -functional.logsigmoid(signs * logits).sum(dim=1)
    sides = (functional.cross_entropy(side, own, reduction="none") for side in (logits, logits.T))
    return sum(sides, torch.zeros_like(own, dtype=logits.dtype)) / 2


def _label(model: nn.Module, batch: dict[str, Any], key: str = "labels") -> Tensor:
    if key not in batch:
        message = (
            f"the loss of a {type(model).__name__} needs `{key}` in every batch; add them, "
            "or give loss_fn(model, batch) -> tensor with one loss per sample"
        )
        raise InputError(message)
    label: Tensor = batch[key]
    return label


def _mean_token_losses(logits: Tensor, labels: Tensor) -> Tensor:
    empty = (labels == IGNORED_LABEL).all(dim=1).nonzero().flatten().tolist()
    if empty:
        message = f"sample {1 + empty[0]} of a batch has no label but {IGNORED_LABEL}, so it has no loss"
        raise InputError(message)
    return mean_token_losses(logits, labels)


_BY_ENDING: dict[str, HeadLoss] = {
    **dict.fromkeys(("ForTokenClassification", "ForMaskedLM"), token_label_losses),
    **dict.fromkeys(
        (
            "ForSequenceClassification",
            "ForImageClassification",
            "ForVideoClassification",
            "ForMultipleChoice",
            "ForNextSentencePrediction",
        ),
        class_losses,
    ),
    "ForQuestionAnswering": span_losses,
}
