"""Large tensors in pieces: several passes over a piece that fits a cache take less time and memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_LARGEST = 2**18  # elements: 1 MiB in FP32


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of one shape into the same pieces, along their first axes; the last axis stays whole.

    Args:
        tensors: of one shape.

    Example:
        >>> [len(part) for (part,) in pieces(torch.zeros(5, 2**17))]
        [2, 2, 1]
    """
    first = tensors[0]
    if first.numel() <= _LARGEST or first.dim() < 2:
        yield tensors
        return
    rows = max(1, _LARGEST * len(first) // first.numel())
    for parts in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
        if rows > 1:
            yield parts
        else:
            yield from pieces(*(part[0] for part in parts))


def norm(values: Tensor) -> Tensor:
    """Compute ||values|| in FP32, of its rows and then of their norms: one long sum would lose digits.

    So the order of the elements makes no difference that matters: attention's may come head by head.

    Args:
        values: of any shape but a scalar.
    """
    whole: Tensor = torch.linalg.vector_norm(torch.linalg.vector_norm(values, dim=-1))
    return whole


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """Compute ||a * b||^2, in FP32 piece by piece and in FP64 over the pieces.

    Args:
        a: of any shape.
        b: of the same shape.
    """
    total = torch.zeros((), dtype=torch.float64, device=a.device)
    for x, y in pieces(a, b):
        total += norm(x.float() * y.float()).square()
    return total


def row_norms(a: Tensor, b: Tensor) -> Tensor:
    """Compute ||a_i * b_i||^2 of each row i, in FP64, piece by piece.

    Args:
        a: shape (rows, inner).
        b: of the same shape.

    Example:
        >>> a, b = torch.tensor([[1.0, 2.0], [0.0, 3.0]]), torch.tensor([[1.0, 1.0], [5.0, 1.0]])
        >>> row_norms(a, b).round(decimals=3).tolist()
        [5.0, 9.0]
    """
    norms = [torch.linalg.vector_norm(x.float() * y.float(), dim=1) for x, y in pieces(a, b)]
    return torch.cat(norms).double().square()
