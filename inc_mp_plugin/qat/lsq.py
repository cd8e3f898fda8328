"""Integers with a learned step: LSQ (Esser et al., "Learned step size quantization", 2020)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import get_format


class CodeRange(NamedTuple):
    """The least and the largest code of an integer: -Qn and Qp."""

    least: int
    largest: int


def code_range(format_name: str, *, signed: bool) -> CodeRange:
    """Return the codes of an integer format: -2^(b-1) to 2^(b-1) - 1, or 0 to 2^b - 1 without a sign.

    Raises:
        InputError: there is no format of that name, or it is no integer.

    Example:
        >>> code_range("int2", signed=True), code_range("int2", signed=False)
        (CodeRange(least=-2, largest=1), CodeRange(least=0, largest=3))
    """
    integer = get_format(format_name)
    if not integer.is_integer:
        message = (
            f"format {format_name!r} is no integer, so it has no steps to learn; give int8, int4 or int2"
        )
        raise InputError(message)
    if signed:
        return CodeRange(-(2 ** (integer.bits - 1)), 2 ** (integer.bits - 1) - 1)
    return CodeRange(0, 2**integer.bits - 1)


def initial_step(mean_magnitude: Tensor, codes: CodeRange) -> Tensor:
    """Return the step to start from, 2 mean|v| / sqrt(Qp), for every mean magnitude.

    A channel of zeros alone is exact with any step, and gets the mean of the other steps.

    Raises:
        InputError: a mean is not finite, or all of them are 0.
    """
    step = 2.0 * mean_magnitude / math.sqrt(codes.largest)
    if not bool(step.isfinite().all()) or not bool((step > 0).any()):
        message = "no step can be found from values that are all 0 or not all finite; give others"
        raise InputError(message)
    return torch.where(step > 0, step, step[step > 0].mean())


class _Rounding(torch.autograd.Function):
    """`quantize`, with the gradients of LSQ."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, step: Tensor, codes: CodeRange, gradient_scale: float) -> Tensor:
        ratio = value / step
        rounded = ratio.clamp(*codes).round()
        ctx.save_for_backward(ratio, rounded, step)
        ctx.codes, ctx.gradient_scale = codes, gradient_scale
        return rounded * step

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        ratio, rounded, step = ctx.saved_tensors
        inside = (ratio > ctx.codes.least) & (ratio < ctx.codes.largest)
        # Outside of the range the code is -Qn or Qp, which is the gradient there; inside v / s comes off.
        slope = torch.where(inside, rounded - ratio, rounded)
        return gradient * inside, ctx.gradient_scale * (gradient * slope).sum_to_size(step.shape), None, None


def quantize(value: Tensor, step: Tensor, codes: CodeRange, gradient_scale: float = 1.0) -> Tensor:
    """Round to whole steps, within a range of codes.

    ::

        v^ = s round(clip(v / s, -Qn, Qp))

    The gradient passes to v unchanged where -Qn < v / s < Qp, and not elsewhere. To the step it passes as::

        dv^/ds = -v / s + round(v / s)    where -Qn < v / s < Qp
                 -Qn                      where v / s <= -Qn
                 Qp                       where v / s >= Qp

    times `gradient_scale`, summed over the values that share a step.

    Args:
        value: tensor of any shape.
        step: broadcasts to the value: one number, or one per channel.
        codes: -Qn and Qp.
        gradient_scale: g of LSQ, 1 / sqrt(N Qp) with N the values that share a step.
    """
    rounded: Tensor = _Rounding.apply(value, step, codes, gradient_scale)  # type: ignore[no-untyped-call]
    return rounded


class Quantizer(nn.Module):
    """A module that rounds a tensor to an integer format whose step is a parameter.

    The whole tensor has one step, or each entry of its first axis has one (the output channels of a weight).
    """

    def __init__(self, format_name: str, step: Tensor, *, signed: bool) -> None:
        """Start from this step, of shape () or (channels,)."""
        super().__init__()
        self.format, self.signed = format_name, signed
        self.range = code_range(format_name, signed=signed)
        self.step = nn.Parameter(step.detach().clone())

    def forward(self, value: Tensor, samples: int = 1) -> Tensor:
        """Round a tensor of `samples` samples to this format; for LSQ, N counts the values of one sample."""
        shared = value.numel() / (samples * self.step.numel())
        return quantize(
            value, self._broadcast(value), self.range, 1.0 / math.sqrt(shared * self.range.largest)
        )

    def codes(self, value: Tensor) -> Tensor:
        """Return the codes of a tensor, in its shape: integers of the format's range."""
        return (value / self._broadcast(value)).detach().clamp(*self.range).round().int()

    def extra_repr(self) -> str:
        """Return format and range, for printing."""
        return f"{self.format}, codes {self.range.least} to {self.range.largest}"

    def _broadcast(self, value: Tensor) -> Tensor:
        return self.step.view(-1, *[1] * (value.dim() - 1)) if self.step.dim() else self.step
