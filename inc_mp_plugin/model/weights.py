"""Weights between two passes, wherever they are kept then, and the device that the passes run on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.accelerate import devices_of, is_dispatched, offloaded
from inc_mp_plugin.libraries.torch import gathered, is_spread
from inc_mp_plugin.model.modules import module_of


def stored_weight(model: nn.Module, op: str) -> Tensor | None:
    """Return the weight of an op between two passes; None for a bgemm, which has none.

    Of a model that is spread over processes, all processes have to ask for the same weight at once.

    Args:
        model: as it is measured.
        op: its name.
    """
    weight = getattr(module_of(model, op), "weight", None)
    return _stored(model, f"{op}.weight", weight) if isinstance(weight, Tensor) else None


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Yield the parameters and buffers of a model's state, one after the other, in its order."""
    for name, tensor in dict(model.state_dict()).items():
        if isinstance(tensor, Tensor):
            yield _stored(model, name, tensor)


def _stored(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """Return the values of a tensor that may be a stand-in for them."""
    if tensor.is_meta:
        values = offloaded(model, name)
        return tensor if values is None else values.detach().to(device_of(model), tensor.dtype)
    return gathered(tensor).detach()


def are_here(model: nn.Module) -> bool:
    """Tell if the weights of a model are there between two passes, not only while it runs."""
    return not is_dispatched(model) and not any(is_spread(parameter) for parameter in model.parameters())


def device_of(model: nn.Module) -> torch.device | None:
    """Return the device that a model runs on: that of its first parameter; None without any."""
    if is_dispatched(model):
        return next(iter(devices_of(model)), None)
    return next((parameter.device for parameter in model.parameters()), None)
