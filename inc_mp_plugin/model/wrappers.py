"""Models as users have them: compiled, wrapped for several devices, or spread over them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.accelerate import devices_of, is_dispatched
from inc_mp_plugin.libraries.deepspeed import has_split_layers, is_engine, is_partitioned
from inc_mp_plugin.libraries.torch import is_spread, uncompiled
from inc_mp_plugin.model.experts import fused_experts

_COPIES = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_BY_FSDP2 = (
    "let torch's FSDP2 spread it: torchrun --nproc-per-node=N --no-python inc-mp tune RECIPE.yaml "
    "run.parallel=fsdp, or load all of it on one device"
)


def unwrapped(model: nn.Module, *, with_weights: bool = True, dispatched: bool = False) -> nn.Module:
    """Return the model itself: without `torch.compile`, copies for several devices, or DeepSpeed's engine.

    Args:
        model: as users have it.
        with_weights: its weights are needed, not its structure alone.
        dispatched: accelerate may bring its weights for each pass, as long as one device runs it.

    Raises:
        InputError: it is no model whose weights are here: another type, TorchScript, on the meta device, made
            in inference mode, spread over devices, or converted already.
    """
    if not isinstance(model, nn.Module) and not is_engine(model):
        message = (
            f"model is of type {type(model).__name__}; give the model itself, a torch.nn.Module, or its name "
            "in a recipe"
        )
        raise InputError(message)
    model = uncompiled(model)
    if is_engine(model) or isinstance(model, _COPIES):
        outer: Any = model
        model = uncompiled(outer.module)
    fault = _fault_of_places(model, dispatched=dispatched) or _fault(model)
    fault = fault or (_fault_of_weights(model) if with_weights else "")
    if fault:
        message = f"this {type(model).__name__} {fault}"
        raise InputError(message)
    return model


def _fault_of_places(model: nn.Module, *, dispatched: bool) -> str:
    """Say why the weights of a model are in places where they cannot be used; nothing if they can."""
    if is_dispatched(model) and not dispatched:
        return "is spread over devices or offloaded by accelerate (device_map); load all of it on one device"
    if is_dispatched(model) and len(devices_of(model)) > 1:
        devices = ", ".join(map(str, devices_of(model)))
        return f"runs on several devices ({devices}) by accelerate's device_map; {_BY_FSDP2}"
    if is_dispatched(model) and fused_experts(model):
        return "has experts, and is offloaded by accelerate (device_map); load all of it on one device"
    if is_partitioned(model):
        return f"is spread over processes by DeepSpeed (ZeRO 3); {_BY_FSDP2}"
    if has_split_layers(model):
        return f"has layers that DeepSpeed put in, for tensor parallelism or its own kernels; {_BY_FSDP2}"
    if any(map(is_spread, model.parameters())):
        kind = "tensor-parallel or sharded: its weights are DTensors"
        return f"is spread over processes already ({kind}); {_BY_FSDP2}"
    return ""


def _fault(model: nn.Module) -> str:
    """Say why the modules of a model are no ones to plan for; nothing if they are."""
    if isinstance(model, torch.jit.ScriptModule):
        return "is TorchScript, which has no modules to swap; give the model that it was made of"
    if any(type(module).__module__.startswith("neural_compressor.") for module in model.modules()):
        return "is converted by INC already; load it anew"
    return ""


def _fault_of_weights(model: nn.Module) -> str:
    """Say why the weights of a model cannot be differentiated here; nothing if they can."""
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta for tensor in tensors) and not is_dispatched(model):
        return "has no weights (they are on the meta device); load them"
    if any(tensor.is_inference() for tensor in tensors):
        return "was made in torch.inference_mode(), so that it has no gradients; load it outside of it"
    return ""
