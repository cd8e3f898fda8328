"""What DeepSpeed makes of a model; last checked with the code of 0.19.8."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_ENGINES = {"DeepSpeedEngine", "InferenceEngine"}
_LAYERS = ("deepspeed.module_inject.", "deepspeed.model_implementations.", "deepspeed.ops.")
_PARTITION = "ds_tensor"  # this process's share of a parameter, beside an empty tensor


def is_engine(model: nn.Module) -> bool:
    """Tell whether a model is an engine of DeepSpeed, which keeps the user's model as `module`. 0.19.8."""
    kinds = type(model).__mro__
    return any(kind.__name__ in _ENGINES and kind.__module__.startswith("deepspeed.") for kind in kinds)


def has_split_layers(model: nn.Module) -> bool:
    """Tell whether layers of a model are DeepSpeed's: of tensor parallelism, or with kernels. 0.19.8."""
    return any(type(module).__module__.startswith(_LAYERS) for module in model.modules())


def is_partitioned(model: nn.Module) -> bool:
    """Tell whether the weights of a model are spread over processes (ZeRO 3). 0.19.8."""
    return any(hasattr(parameter, _PARTITION) for parameter in model.parameters())
