"""What a forward pass of held-out samples gives: their losses and, where there are any, distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import placed
from inc_mp_plugin.model.distributions import Distributions, distributions_in
from inc_mp_plugin.model.hooks import recorded
from inc_mp_plugin.model.losses import sample_losses

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction


class Outcome(NamedTuple):
    """Loss of each sample of a batch, shape (samples,), and the distributions that the model predicted.

    `predicted` is None where there is no single distribution per position; `why` then says why.
    """

    losses: Tensor
    predicted: Distributions | None
    why: str = ""


def outcome(model: nn.Module, batch: Batch, loss_fn: LossFunction | None, *, bare: bool) -> Outcome:
    """Run a model once without gradients, for the losses of a batch and for its distributions.

    Args:
        model: to be run.
        batch: of samples.
        loss_fn: as in `sample_losses`; it runs the model.
        bare: if a tensor that a model returns holds logits; without, only an output's `logits` do. A model
            with a loss of its own may predict anything, such as numbers.

    Raises:
        InputError: as `sample_losses`.
    """
    with recorded(model) as outputs, torch.no_grad():
        losses = sample_losses(model, batch, loss_fn)
    if len(outputs) != 1:
        why = f"the loss function ran the model {len(outputs)} times on a batch, and not once"
        return Outcome(losses, None, f"{why}, so that there is no KL divergence; give tau instead of kl")
    if isinstance(outputs[0], Tensor) and not bare:
        return Outcome(losses, None, "the model returns a tensor, which may hold other things than logits")
    try:
        return Outcome(losses, distributions_in(outputs[0], model, placed(model, batch)))
    except InputError as error:
        return Outcome(losses, None, str(error))
