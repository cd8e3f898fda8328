"""Scales of FP8 as vLLM computes them of activations, and compressed-tensors of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.scales.methods import Scale, Scales

if TYPE_CHECKING:
    from torch import Tensor

FULL_SCALE = 448.0  # largest value of E4M3
_LEAST = 1.0 / (FULL_SCALE * 512.0)  # of vLLM's scales of tokens
_FORMAT = "fp8_e4m3"
SERVED_METHODS = ("dynamic",)


def channel_scales(weight: Tensor) -> Tensor:
    """Compute the scale of each output channel, max |w| / 448, in the dtype of the weight, shape (rows, 1).

    As compressed-tensors does: a row of zeros has the machine epsilon of the dtype.

    Args:
        weight: or some of its rows, shape (rows, inner).
    """
    import torch

    from inc_mp_plugin.scales.nearest import largest_magnitude

    scale = largest_magnitude(weight, dim=1) / FULL_SCALE
    return scale.masked_fill_(scale == 0, torch.finfo(weight.dtype).eps).unsqueeze(1)


@dataclass(frozen=True, slots=True)
class ServedScales(Scales):
    """Scales of a server instead of INC's: `method` is the scheme of its checkpoints, `device` its name.

    "dynamic": a weight has a scale for each output channel, from compressed-tensors, which divides in the
    dtype of the weight. An activation has one for each token, max(max |x| / 448, 1 / (448 * 512)) in FP32,
    and is multiplied by the inverse, as vLLM's `QuantFP8` does. None of them needs calibration.

    Raises:
        InputError: an unknown method.
    """

    def __post_init__(self) -> None:
        """Check the name of the method."""
        if self.method not in SERVED_METHODS:
            raise InputError(unknown("scheme", self.method, SERVED_METHODS))

    @property
    def per_token(self) -> bool:
        """True: an activation has a scale for each token."""
        return True

    def full_scale(self, format_name: str) -> float:
        """Return the largest finite value of E4M3.

        Raises:
            InputError: another format.
        """
        if format_name != _FORMAT:
            raise InputError(unknown("FP8 format", format_name, (_FORMAT,)))
        return FULL_SCALE

    def doubtful(self, part: str, format_name: str, dtype: str) -> float:
        """Return 0: every part has a scale.

        Args:
            part: makes no difference.
            format_name: makes no difference.
            dtype: makes no difference.
        """
        del part, format_name, dtype
        return 0.0

    def usable(self, part: str, maxabs: Tensor, format_name: str) -> Tensor:
        """Tell where there is a scale: everywhere.

        Args:
            part: makes no difference.
            maxabs: of any shape.
            format_name: makes no difference.
        """
        import torch

        del part, format_name
        return torch.ones_like(maxabs, dtype=torch.bool)

    def of_input(self, maxabs: Tensor, format_name: str) -> Scale:
        """Return the scale of each token, in FP32.

        Args:
            maxabs: of each token, in any shape.
            format_name: E4M3.
        """
        scale = (maxabs.float() / self.full_scale(format_name)).clamp_(min=_LEAST)
        return Scale(scale, scale, scale.reciprocal())

    def of_weight(self, weight: Tensor, format_name: str) -> Scale:
        """Return the scale of each output channel; its divisor has the dtype of the weight."""
        self.full_scale(format_name)
        scale = channel_scales(weight.flatten(1)).view(-1, *[1] * (weight.dim() - 1))
        return Scale(scale, scale.float())
