"""Rows of a tensor that are the same, so that their rounding errors are the same, too."""

from __future__ import annotations

import torch
from torch import Tensor

_COLUMNS = 8  # that are compared first


def repeats(value: Tensor) -> Tensor | None:
    """Find for each row the first row that is the same; None if all differ.

    Such are the inputs of a model's first layer, where a token comes twice, and the keys and values that
    several heads read. Some columns are compared first: a row that is the same as others in these alone
    may count by itself, though it has a twin.

    Args:
        value: of any shape; rows lie along its last axis.

    Returns:
        The number of the first such row for each, shape (rows,).

    Example:
        >>> repeats(torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])).tolist()
        [0, 1, 0]
    """
    if value.dim() < 2:  # a single row
        return None
    rows = value.flatten(0, -2)
    numbers = torch.arange(len(rows), device=value.device)
    codes = _codes(rows)
    kinds, places = torch.unique(codes, return_inverse=True)
    if len(kinds) == len(rows):
        return None
    first = torch.full_like(kinds, len(rows)).scatter_reduce_(0, places, numbers, "amin")[places]
    return torch.where((rows == rows[first]).all(dim=1), first, numbers)


def _codes(rows: Tensor) -> Tensor:
    """Compute a number from some columns of each row; sums of integers do not depend on their order."""
    some = rows[:, :: max(1, rows.shape[1] // _COLUMNS)].float().view(torch.int32).long()
    odd = torch.arange(1, 2 * some.shape[1], 2, device=rows.device)
    return (some * (odd * 2654435761 + 1)).sum(dim=1)
