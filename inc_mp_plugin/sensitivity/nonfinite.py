"""The op where a NaN or an infinity appears first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.model.finite import watched

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rows import Rows


def where_not_finite(model: nn.Module, graph: Graph, run: Callable[[], None], *, rows: Rows) -> str:
    """Name the op where the first NaN or infinity appears: run the batch again and look.

    Args:
        model: as it ran when the rows were measured.
        graph: from `capture`.
        run: runs the model on the batch.
        rows: of the batch.
    """
    broken: list[str] = []

    def look(name: str, inputs: bool, outputs: bool) -> None:
        if not (inputs and outputs):
            broken.append(f"NaN or infinity in the {'output' if inputs else 'input'} of op {name!r}")

    with torch.no_grad(), watched(model, graph.by_name, look):
        run()
    if broken:
        return broken[0]
    names = np.array([op.name for op in graph.ops])
    without_gradient = names[~np.isfinite(rows.input + rows.weight).all(axis=0)].tolist()
    if without_gradient:  # backward runs from the last op to the first
        return f"NaN or infinity in the gradient of op {without_gradient[-1]!r}"
    for format_name, part in rows.rounding.items():
        overflowing = names[~np.isfinite(part).all(axis=0)].tolist()
        if overflowing:
            return f"op {overflowing[0]!r} overflows when rounded to {format_name}"
    return "the loss of a sample is NaN or infinite although every op's output is finite"
