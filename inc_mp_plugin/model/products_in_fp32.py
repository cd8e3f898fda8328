"""Matrix products of narrow tensors in FP32, for CPUs that have no fast kernels of their dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from inc_mp_plugin.libraries.torch import ReplacedOperators

NARROW = (torch.bfloat16, torch.float16)
_WIDE_AT_ONCE = 2**23  # elements of a second factor: 32 MiB in FP32


@contextmanager
def products_in_fp32() -> Iterator[None]:
    """Compute matrix products of BF16 and FP16 tensors on a CPU in FP32 inside a `with`.

    Factors are cast as a product runs, a part of a large one at a time, and the result is rounded once to
    their dtype: as a kernel of that dtype rounds that adds up in FP32. The two differ by the order of sums.
    """
    with ReplacedOperators({"mm": _mm, "addmm": _addmm, "bmm": _bmm}):
        yield


def _mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    if not _is_narrow(a):
        return torch.mm(a, b) if out is None else torch.mm(a, b, out=out)
    result = a.new_empty(len(a), b.shape[1]) if out is None else out
    wide = a.float()
    for columns in _parts(b.shape[1], len(b)):
        result[:, columns] = torch.mm(wide, b[:, columns].float())
    return result


def _addmm(
    bias: Tensor, a: Tensor, b: Tensor, *, beta: float = 1, alpha: float = 1, out: Tensor | None = None
) -> Tensor:
    if not _is_narrow(a):
        kind = {"beta": beta, "alpha": alpha, **({} if out is None else {"out": out})}
        return torch.addmm(bias, a, b, **kind)  # type: ignore[call-overload,no-any-return]
    result = a.new_empty(len(a), b.shape[1]) if out is None else out
    wide, bias = a.float(), bias.expand_as(result)
    for columns in _parts(b.shape[1], len(b)):
        own = bias[:, columns].float()
        result[:, columns] = torch.addmm(own, wide, b[:, columns].float(), beta=beta, alpha=alpha)
    return result


def _bmm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    if not _is_narrow(a):
        return torch.bmm(a, b) if out is None else torch.bmm(a, b, out=out)
    result = a.new_empty(len(a), a.shape[1], b.shape[2]) if out is None else out
    for part in _parts(len(a), max(a[:1].numel(), b[:1].numel(), result[:1].numel())):
        result[part] = torch.bmm(a[part].float(), b[part].float())
    return result


def _is_narrow(tensor: Tensor) -> bool:
    return tensor.dtype in NARROW and tensor.device.type == "cpu"


def _parts(count: int, elements: int) -> Iterator[slice]:
    """Cut so many columns or matrices, of so many elements each, into parts that are cast at once."""
    step = max(1, _WIDE_AT_ONCE // max(1, elements))
    return (slice(first, first + step) for first in range(0, count, step))
