"""Finding the op where a NaN or an infinity appears first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from inc_mp_plugin.losses import sample_losses
from inc_mp_plugin.plan import Graph

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch
    from inc_mp_plugin.losses import LossFunction
    from inc_mp_plugin.sensitivity.taylor import Rows


def where_not_finite(
    model: nn.Module, graph: Graph, batch: Batch, loss_fn: LossFunction | None, rows: Rows
) -> str:
    """Name the op where the first NaN or infinity appears: run the batch again and look."""
    seen: list[str] = []

    def look(name: str, what: str, values: object) -> None:
        tensors = values if isinstance(values, tuple) else (values,)
        for tensor in tensors:
            floating = isinstance(tensor, torch.Tensor) and tensor.is_floating_point()
            if floating and not torch.isfinite(tensor).all():
                seen.append(f"NaN or infinity in the {what} of op {name!r}")

    handles = []
    for op in graph.ops:
        module = model.get_submodule(op.name)

        def hook(_: nn.Module, args: object, output: object, name: str = op.name) -> None:
            look(name, "input", args)
            look(name, "output", output)

        handles.append(module.register_forward_hook(hook))
    try:
        with torch.no_grad():
            sample_losses(model, batch, loss_fn)
    finally:
        for handle in handles:
            handle.remove()
    if seen:
        return seen[0]
    broken = ~np.isfinite(rows.input + rows.weight).all(axis=0)
    if broken.any():  # backward runs from the last op to the first
        return f"NaN or infinity in the gradient of op {graph.ops[int(np.flatnonzero(broken)[-1])].name!r}"
    for format, part in rows.rounding.items():
        broken = ~np.isfinite(part).all(axis=0)
        if broken.any():
            return f"op {graph.ops[int(np.argmax(broken))].name!r} overflows when rounded to {format}"
    return "the loss of a sample is NaN or infinite although every op's output is finite"
