"""Rounded weights in the bytes of their format, which give the same rounded weight again, bit for bit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inc_mp_plugin.scales.dtypes import dtype_of

# Bits of FP16 have one more exponent bit than E4M3, and as many as E5M2, in the same place after a shift:
# (bits to shift, mask against the sign that the shift doubles, factor for the other bias of the exponent).
_IN_FP16 = {torch.float8_e4m3fn: (7, ~0x4000, 2.0**8), torch.float8_e5m2: (8, ~0, 1.0)}


@dataclass(frozen=True, slots=True)
class Packed:
    """A rounded weight as it is stored in its format.

    Attributes:
        values: in the format, divided by the scale if it has one.
        factor: the scale in FP32, which broadcasts to the values; None without one.
        dtype: of the rounded weight.
    """

    values: Tensor
    factor: Tensor | None
    dtype: torch.dtype

    @staticmethod
    def of(values: Tensor, format_name: str, factor: Tensor | None, dtype: torch.dtype) -> Packed:
        """Make bytes of values that their format has.

        Args:
            values: of any shape.
            format_name: of the format.
            factor: as in the class.
            dtype: of the rounded weight.
        """
        return Packed(values.to(dtype_of(format_name)), factor, dtype)

    @property
    def nbytes(self) -> int:
        """Size of the values, bytes."""
        return self.values.nbytes

    def weight(self) -> Tensor:
        """Return the rounded weight; not to be changed."""
        if self.factor is None:
            return self.values.to(self.dtype)
        return _widened(self.values).mul_(self.factor).to(self.dtype)


def _widened(values: Tensor) -> Tensor:
    """Cast FP8 to FP32, all values but NaN.

    On a CPU, torch's own cast of E4M3 takes longer than to round the weight again, and this a third of that.
    """
    if values.dtype not in _IN_FP16:
        return values.float()
    shift, mask, factor = _IN_FP16[values.dtype]
    bits = values.view(torch.int8).to(torch.int16).bitwise_left_shift_(shift).bitwise_and_(mask)
    return bits.view(torch.float16).float().mul_(factor)
