"""Fast passes over the elements of a tensor: the nearest FP8 values, and the largest magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from inc_mp_plugin.scales.dtypes import dtype_of

_EXPONENT = 0x7F800000  # bits of the exponent in FP32


def to_nearest(value: Tensor, format_name: str) -> Tensor:
    """Round to the nearest values of a floating-point format, ties to even, in place.

    The same values as a cast to the format and back, but for the sign of zeros. On a CPU, torch casts FP8 to
    FP32 element by element; this takes half of the time or less. With 2^e the power of two below |x|, or the
    smallest normal number of the format, and eps the spacing of the format above 1::

        m = 1.5 * 2^23 * eps * 2^e,    x -> (x + m) - m

    for the spacing of FP32 around m is eps * 2^e, that of the format around x.

    Args:
        value: in FP32, no larger than the format's largest value.
        format_name: of the format.

    Returns:
        The value.

    Example:
        >>> to_nearest(torch.tensor([1.0, 1.0625, 1.07, -0.0011]), "fp8_e4m3").tolist()
        [1.0, 1.0, 1.125, -0.001953125]
    """
    numbers = torch.finfo(dtype_of(format_name))
    power = (value.view(torch.int32) & _EXPONENT).view(torch.float32)
    magic = power.clamp_(min=numbers.smallest_normal).mul_(1.5 * 2**23 * numbers.eps)
    return value.add_(magic).sub_(magic)


def largest_magnitude(tensor: Tensor, dim: int | None = None) -> Tensor:
    """Find the largest magnitude of a tensor's elements, or along an axis, without a copy of the tensor.

    Args:
        tensor: of any shape.
        dim: the axis; None for all elements.
    """
    if dim is None:
        least, most = tensor.aminmax()
    else:  # along an axis, aminmax takes ten times as long as both
        least, most = tensor.amin(dim=dim), tensor.amax(dim=dim)
    return torch.maximum(-least, most)
