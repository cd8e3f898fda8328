"""FP8 linear layers on a CUDA GPU: real FP8 matrix products, with INC's static scales."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import scaled_product
from inc_mp_plugin.model.batches import call
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.switch import Switch
from inc_mp_plugin.targets.timed import CUDA_FP8

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

_FULL_SCALE = torch.finfo(torch.float8_e4m3fn).max
# INC leaves room above the largest value that calibration saw: twice that of weights, four times of inputs.
_WEIGHT_BACKOFF, _INPUT_BACKOFF = 0.5, 0.25


class Float8Linear(nn.Module):
    """A linear layer whose product runs in FP8: y = s_x s_w (x / s_x) (W / s_w)^T + b.

    Scales are one number per tensor, chosen beforehand as INC does on Gaudi: s = max|z| / (backoff x
    full scale).
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    inverse: Tensor

    def __init__(self, linear: nn.Linear, largest_input: float) -> None:
        """Cast the weight of `linear`; its inputs are expected within `largest_input`."""
        super().__init__()
        weight = linear.weight.detach()
        device = weight.device
        weight_scale = _scale(float(weight.abs().max()), _WEIGHT_BACKOFF)
        input_scale = _scale(largest_input, _INPUT_BACKOFF)
        lowered = (weight.float() / weight_scale).clamp(-_FULL_SCALE, _FULL_SCALE)
        self.register_buffer("weight", lowered.to(torch.float8_e4m3fn))
        self.register_buffer("weight_scale", torch.tensor(weight_scale, device=device))
        self.register_buffer("input_scale", torch.tensor(input_scale, device=device))
        self.register_buffer(
            "inverse", torch.tensor(1.0 / input_scale, device=device, dtype=linear.weight.dtype)
        )
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """Cast the input and multiply; the result has the input's dtype."""
        rows = (input.reshape(-1, input.shape[-1]) * self.inverse).clamp(-_FULL_SCALE, _FULL_SCALE)
        output = scaled_product(
            rows.to(torch.float8_e4m3fn),
            self.weight.t(),
            (self.input_scale, self.weight_scale),
            bias=self.bias,
            out_dtype=input.dtype,
        )
        return output.reshape(*input.shape[:-1], -1)


@torch.no_grad()
def float8_switch(model: nn.Module, ops: Sequence[str], batches: Iterable[Batch]) -> Switch:
    """Make an FP8 layer beside every one of these linear layers; the model then runs in its base format.

    Args:
        model: in evaluation mode, where it is to be run.
        ops: names of linear layers.
        batches: calibration batches, from which input scales are taken.

    Raises:
        InputError: an op is no linear layer, or no batch ran it.
    """
    base = {op: model.get_submodule(op) for op in ops}
    largest = _largest_inputs(model, base, batches)
    lower: dict[str, nn.Module] = {}
    for op, module in base.items():
        if not isinstance(module, nn.Linear):
            message = f"{op!r} is a {type(module).__name__}; only linear layers have FP8 products on CUDA"
            raise InputError(message)
        if op not in largest:
            message = f"no calibration batch ran {op!r}, so it has no scale"
            raise InputError(message)
        lower[op] = Float8Linear(module, largest[op])
    return Switch(model, base, {CUDA_FP8: lower})


def _largest_inputs(
    model: nn.Module, modules: dict[str, nn.Module], batches: Iterable[Batch]
) -> dict[str, float]:
    largest: dict[str, float] = {}

    def look(op: str, args: tuple[Tensor, ...], kwargs: object) -> None:
        del kwargs
        largest[op] = max(largest.get(op, 0.0), float(args[0].abs().max()))

    with watching(modules, before=look):
        for batch in batches:
            call(model, batch)
    return largest


def _scale(largest: float, backoff: float) -> float:
    """Return the scale of a tensor whose values reach `largest`; 1 where all are zero."""
    return largest / (backoff * _FULL_SCALE) if largest else 1.0
