"""FP8 linear layers on a CUDA GPU: real FP8 matrix products, with INC's static scales."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import scaled_product
from inc_mp_plugin.model.batches import call
from inc_mp_plugin.model.compiled import fused
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.switch import Switch
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.targets.timed import CUDA_FP8

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

_FULL_SCALE = torch.finfo(torch.float8_e4m3fn).max
# INC leaves room above the largest value that calibration saw: twice that of weights, four times of inputs.
_WEIGHT_BACKOFF, _INPUT_BACKOFF = 0.5, 0.25


def lowered(value: Tensor, inverse: Tensor) -> Tensor:
    """Cast to FP8 with a scale, given its inverse."""
    return (value * inverse).clamp(-_FULL_SCALE, _FULL_SCALE).to(torch.float8_e4m3fn)


class Float8Linear(nn.Module):
    """A linear layer whose product runs in FP8: y = s_x s_w (x / s_x) (W / s_w)^T + b.

    Scales are one number per tensor, chosen beforehand as INC does on Gaudi: s = max|z| / (backoff x
    full scale).
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    inverse: Tensor

    def __init__(
        self, linear: nn.Linear, largest_input: float, cast: Callable[[Tensor, Tensor], Tensor] = lowered
    ) -> None:
        """Cast the weight of a linear layer.

        Args:
            linear: the layer.
            largest_input: magnitude that its inputs are expected within.
            cast: `lowered`, or the same as one kernel.
        """
        super().__init__()
        weight = linear.weight.detach()
        device = weight.device
        weight_scale = _scale(float(weight.abs().max()), _WEIGHT_BACKOFF)
        input_scale = _scale(largest_input, _INPUT_BACKOFF)
        codes = (weight.float() / weight_scale).clamp(-_FULL_SCALE, _FULL_SCALE)
        self.register_buffer("weight", codes.to(torch.float8_e4m3fn))
        self.register_buffer("weight_scale", torch.tensor(weight_scale, device=device))
        self.register_buffer("input_scale", torch.tensor(input_scale, device=device))
        self.register_buffer(
            "inverse", torch.tensor(1.0 / input_scale, device=device, dtype=linear.weight.dtype)
        )
        self.bias = linear.bias
        self._cast = cast

    def forward(self, input: Tensor) -> Tensor:
        """Cast the input and multiply; the result has the input's dtype."""
        output = scaled_product(
            self._cast(input.reshape(-1, input.shape[-1]), self.inverse),
            self.weight.t(),
            (self.input_scale, self.weight_scale),
            bias=self.bias,
            out_dtype=input.dtype,
        )
        return output.reshape(*input.shape[:-1], -1)


@torch.no_grad()
def float8_switch(model: nn.Module, ops: Sequence[str], batches: Iterable[Batch]) -> Switch:
    """Make an FP8 layer beside every one of these linear layers; the model then runs in its base format.

    On a GPU the cast of an input is one kernel where torch can compile it: as three kernels (times, clamp,
    cast) it would decide the time of a decode step.

    Args:
        model: in evaluation mode, where it is to be run.
        ops: names of linear layers.
        batches: calibration batches, from which input scales are taken.

    Raises:
        InputError: an op is no linear layer, or no batch ran it.
    """
    base = {op: model.get_submodule(op) for op in ops}
    largest = _largest_inputs(model, base, batches)
    cast = _one_kernel(model)
    lower: dict[str, nn.Module] = {}
    for op, module in base.items():
        if not isinstance(module, nn.Linear):
            message = f"{op!r} is a {type(module).__name__}; only linear layers have FP8 products on CUDA"
            raise InputError(message)
        if op not in largest:
            message = f"no calibration batch ran {op!r}, so it has no scale"
            raise InputError(message)
        lower[op] = Float8Linear(module, largest[op], cast)
    return Switch(model, base, {CUDA_FP8: lower})


def _one_kernel(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """Make one kernel of the cast for a model on a GPU; on a CPU take it as it is."""
    like = next(model.parameters())
    if like.device.type == "cpu":
        return lowered
    cast, how = fused(lowered, like.new_zeros(32, 32), like.new_ones(()))
    say(f"timing: casts to FP8 are {how}")
    return cast


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
