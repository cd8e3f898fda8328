"""Joined texts, and models that do not tell them apart."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import evaluating
from inc_mp_plugin.model.losses import logits_of
from inc_mp_plugin.model.weights import device_of

_LENGTH = 4  # tokens of each of two joined texts
_TOLERANCE = 1e-3  # of the largest logit; a text that is seen moves all logits by more


def check_packing(model: nn.Module) -> None:
    """Check on two joined texts that the second does not see the first.

    Attention of transformers tells them apart by `position_ids` that begin again. Models with other positions
    (BLOOM, OPT) or other layers (Mamba) do not.

    Raises:
        InputError: the model mixes joined texts.
    """
    device = device_of(model)
    positions = torch.arange(_LENGTH, device=device).repeat(2)[None]
    second = torch.arange(1, _LENGTH + 1, device=device)

    def logits(first: Tensor) -> Tensor:
        batch = {"input_ids": torch.cat([first, second])[None], "position_ids": positions}
        return logits_of(model, batch)[0, _LENGTH:].float()

    with evaluating(model), torch.no_grad():
        before, after = logits(second), logits(second.flip(0) + 1)
    if (before - after).abs().max() > _TOLERANCE * before.abs().max():
        message = (
            f"pack: true needs a model that tells joined texts apart by position_ids, and a "
            f"{type(model).__name__} mixes them; give pack: false"
        )
        raise InputError(message)
