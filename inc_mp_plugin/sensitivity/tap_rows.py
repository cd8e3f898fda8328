"""Rows of what taps have summed up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from inc_mp_plugin.sensitivity.rows import Rows
from inc_mp_plugin.sensitivity.taps import Taps

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray


def to_rows(taps: Taps, losses: Tensor, counts: tuple[Tensor, Tensor], factor: float) -> Rows:
    """Turn totals into rows.

    Args:
        taps: after the backward passes.
        losses: of the rows.
        counts: positions and samples of each row.
        factor: of the squares.
    """
    totals = taps.totals

    def scaled(parts: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
        return {key: part.cpu().numpy() * factor for key, part in parts.items()}

    tokens, sizes = (count.double().cpu().numpy() for count in counts)
    squares = scaled({"input": totals.input, "weight": totals.weight})
    return Rows(
        losses.detach().double().cpu().numpy(),
        tokens,
        sizes,
        squares["input"],
        squares["weight"],
        taps.called,
        _largest(taps)[None],
        scaled(totals.rounding),
        scaled(totals.second),
        scaled(totals.shared),
        totals.reads.cpu().numpy()[None],
    )


def _largest(taps: Taps) -> FloatArray:
    """Give the maxabs of each op's first and second input, shape (2, ops); -1 for none."""
    largest = np.full((2, len(taps.columns)), -1.0)
    values = [value.double() for value in taps.maxabs.values()]
    device = values[0].device if values else None
    together = torch.stack([value.to(device) for value in values]).tolist() if values else []
    for (op, index), value in zip(taps.maxabs, together, strict=True):
        if op in taps.columns and index < len(largest):
            largest[index, taps.columns[op]] = value
    return largest
