"""FP8 linear layers in the ways that serving knows: per tensor or per row, static or dynamic scales.

The cast is one function, for `torch.compile` to fuse: as three kernels (times, clamp, cast) it would decide
what a decode step costs. The product is the public `scaled_mm` where torch runs it, else `_scaled_mm`.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max
FAST = True  # accumulation, as vLLM has it; it changes speed and digits


def cast_static(x: Tensor, inverse: Tensor) -> Tensor:
    """Cast with a scale that is known; `inverse` is 1 over it."""
    return (x.float() * inverse).clamp(-LARGEST, LARGEST).to(FP8)


def cast_tensor(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cast with one scale for all, which takes a pass of its own over the input."""
    scale = (x.abs().amax().float() / LARGEST).clamp(min=1e-12)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def cast_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Cast with a scale per row, shape (rows, 1)."""
    scale = (x.abs().amax(dim=1, keepdim=True).float() / LARGEST).clamp(min=1e-12)
    return (x.float() / scale).clamp(-LARGEST, LARGEST).to(FP8), scale


def padded_static(x: Tensor, inverse: Tensor) -> Tensor:
    """Cast, with rows of zeros up to 32: the product is slower below 17 rows."""
    return cast_static(nn.functional.pad(x, (0, 0, 0, 32 - x.shape[0])), inverse)


def product(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    """Compute (scale_a a) @ (scale_b b) in BF16; scales of one number, or (rows, 1) and (1, columns)."""
    return (_public if runs_public(a.device) else _private)(a, b, scale_a, scale_b)


@cache
def runs_public(device: torch.device) -> bool:
    """Tell whether `scaled_mm` runs here: 2.11 has it for GPUs only, versions before 2.10 have none."""
    codes, one = torch.ones(16, 16, device=device).to(FP8), torch.ones((), device=device)
    try:
        _public(codes, codes.t(), one, one)
    except (AttributeError, NotImplementedError):
        return False
    return True


def _public(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    kinds = nn.functional.ScalingType
    kind = kinds.RowWise if scale_a.dim() else kinds.TensorWise
    options = {"output_dtype": torch.bfloat16, "use_fast_accum": FAST}
    return nn.functional.scaled_mm(a, b, scale_a, kind, scale_b, kind, **options)


def _private(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor) -> Tensor:
    options = {"out_dtype": torch.bfloat16, "use_fast_accum": FAST}
    return torch._scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, **options)
