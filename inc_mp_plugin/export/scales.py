"""Static scales of the weights and inputs of ops, one per group that a server runs as one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.export.casts import weight_maxabs
from inc_mp_plugin.export.groups import input_groups, weight_groups
from inc_mp_plugin.export.settings import FORMAT
from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.scales.methods import SCALE_METHODS, Scale, Scales

if TYPE_CHECKING:
    from torch import Tensor

    from inc_mp_plugin.export.checkpoint import Checkpoint
    from inc_mp_plugin.export.places import Place
    from inc_mp_plugin.targets.layout import Captured


class StaticScales(NamedTuple):
    """Scales of an op, of its weight and of its input; `dtype` is that of the model when it was measured."""

    weight: Scale
    input: Scale
    dtype: torch.dtype


def static_scales(
    checkpoint: Checkpoint,
    places: Mapping[str, Place],
    inputs: Mapping[str, float],
    method: Scales,
    *,
    base: str,
    captured: Captured,
) -> dict[str, StaticScales]:
    """Compute the scales of ops in FP8; in a group of the server, the largest of its members'.

    Args:
        checkpoint: that holds the weights.
        places: of the weights of these ops.
        inputs: maxabs of the input of each op.
        method: INC's scale method.
        base: the base format that the inputs were measured in.
        captured: the linear ops of the model.

    Raises:
        InputError: the method has a scale for each output channel.
        NonFiniteError: a NaN or an infinity in a weight.
    """
    if SCALE_METHODS[method.method].per_channel_weight:
        message = (
            f"--scheme static has one scale per weight, but scale_method {method.method} has one per output "
            "channel; give --scheme dynamic"
        )
        raise InputError(message)
    dtype = dtype_of(base)
    weights = {op: weight_maxabs(place.slabs(checkpoint), dtype, op) for op, place in places.items()}
    seen = {op: torch.tensor(inputs[op], dtype=dtype) for op in places}
    _raise_together(weights, weight_groups(captured))
    _raise_together(seen, input_groups(captured))
    return {
        op: StaticScales(method.of_weight(weights[op], FORMAT), method.of_input(seen[op], FORMAT), dtype)
        for op in places
    }


def _raise_together(maxabs: dict[str, Tensor], groups: Iterable[Sequence[str]]) -> None:
    """Give each op the largest maxabs of its group, in place."""
    for group in groups:
        members = [op for op in group if op in maxabs]
        if members:
            largest = torch.stack([maxabs[op] for op in members]).amax()
            maxabs.update(dict.fromkeys(members, largest))
