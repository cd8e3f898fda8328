"""Models as users have them: compiled, in an engine, or spread over devices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.accelerate import is_dispatched
from inc_mp_plugin.libraries.deepspeed import is_engine, is_partitioned
from inc_mp_plugin.libraries.torch import uncompiled

if TYPE_CHECKING:
    from torch import nn


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model that a compiled one or an engine of DeepSpeed was made of; any other as it is.

    Raises:
        InputError: its weights are not all on one device.
    """
    model = uncompiled(model)
    if is_engine(model):
        engine: Any = model
        model = uncompiled(engine.module)
    where = None
    if is_dispatched(model):
        where = "over devices or offloaded by accelerate (device_map)"
    elif is_partitioned(model):
        where = "over processes by DeepSpeed (ZeRO 3)"
    if where:
        message = f"this {type(model).__name__} is spread {where}; load all of it on one device"
        raise InputError(message)
    return model
