"""Ops that INC has no scale for: zeros, and numbers so small that the inverse of a scale is infinite."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from inc_mp_plugin.core.formats import converted_format, get_format
from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.scales.methods import CHANNEL, INPUT, SCALE_METHODS, WEIGHT, Scales

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray, Sensitivity

ON_A_CPU = Scales("maxabs_arbitrary", "cpu")

_NAMES = {INPUT: "an input", WEIGHT: "a weight", CHANNEL: "an output channel"}


def without_scale(
    sensitivity: Sensitivity, base: str, formats: Collection[str], scales: Collection[Scales] = (ON_A_CPU,)
) -> dict[str, str]:
    """Find the ops that INC would turn into NaN or noise in FP8, each with the reason.

    A scale is maxabs / (full scale x backoff), rounded. INC inverts the scale, and inverts the result again.
    Both must be finite and above 0, in the dtype in which INC computes the scale.

    Args:
        sensitivity: with the maxabs of inputs, weights and output channels; without, no op is named.
        base: the base format.
        formats: formats that ops may take; only FP8 has scales.
        scales: of every consumer.
    """
    reasons: dict[str, str] = {}
    for format_name in (name for name in formats if get_format(name).is_fp8):
        for method in scales:
            for part, maxabs in sensitivity.maxabs.items():
                dtype = _dtype(method, part, base)
                for index in _unusable(method, part, maxabs, format_name=format_name, dtype=dtype):
                    reasons.setdefault(sensitivity.ops[index], _reason(part, float(maxabs[index])))
    return {op: reasons[op] for op in sensitivity.ops if op in reasons}


def _reason(part: str, maxabs: float) -> str:
    where = " that calibration gave it" if part == INPUT else ""
    return f"INC has no scale for {_NAMES[part]} {'so near to zero' if maxabs else 'of zeros'}{where}"


def _unusable(scales: Scales, part: str, maxabs: FloatArray, *, format_name: str, dtype: str) -> list[int]:
    """List the indices of the ops of which a part has no scale.

    Torch, for INC's own arithmetic, is loaded only if there is a doubt.
    """
    doubtful = [
        i for i, m in enumerate(maxabs.tolist()) if not m >= scales.doubtful(part, format_name, dtype)
    ]
    if not doubtful or (part == CHANNEL and _has_floor(scales, dtype)):
        return []
    import torch

    usable = scales.usable(part, torch.from_numpy(maxabs[doubtful]).to(dtype_of(dtype)), format_name)
    return [index for index, good in zip(doubtful, usable.tolist(), strict=True) if not good]


def _dtype(scales: Scales, part: str, base: str) -> str:
    """Return the format in which INC computes a scale: BF16 on Gaudi; on a CPU, that of the converted model.

    Scales of channels are computed in the weight's own format, before INC makes BF16 of FP16.
    """
    if scales.device != "cpu":
        return "bf16"
    return base if part == CHANNEL else converted_format(base)


def _has_floor(scales: Scales, dtype: str) -> bool:
    """Tell if INC keeps the scales of channels from being too small; on Gaudi, any version may run."""
    if scales.device != "cpu" or dtype == "fp16":  # the floor is 0 in FP16
        return False
    from inc_mp_plugin.libraries.neural_compressor import channel_scales_have_a_floor

    return SCALE_METHODS[scales.method].per_channel_weight and channel_scales_have_a_floor()
