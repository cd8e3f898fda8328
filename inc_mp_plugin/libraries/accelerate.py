"""What accelerate leaves on a model that it spreads over devices; last checked with 1.15."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import Tensor, nn

_HOOK = "_hf_hook"  # moves a module's weights and inputs
_FORWARD = "_old_forward"  # the module's own, which accelerate's calls once all is in place


def is_dispatched(model: nn.Module) -> bool:
    """Tell whether accelerate moves parts of a model between devices, or from a disk. 1.15."""
    return any(map(is_hooked, model.modules()))


def is_hooked(module: nn.Module) -> bool:
    """Tell whether accelerate moves the weights or the inputs of this very module. 1.15."""
    return hasattr(module, _HOOK) and hasattr(module, _FORWARD)


def devices_of(model: nn.Module) -> list[torch.device]:
    """List the devices that a dispatched model runs on, wherever its weights are between passes. 1.15."""
    given = [getattr(hook, "execution_device", None) for m in model.modules() for hook in _hooks(m)]
    return sorted({torch.device(device) for device in given if device is not None}, key=str)


@contextmanager
def within(module: nn.Module, around: Callable[..., Any]) -> Iterator[None]:
    """Call a function in the place of a hooked module's own forward, with weights and inputs in place. 1.15.

    Args:
        module: that accelerate has hooked.
        around: takes the module's own forward, then what that would take.
    """
    own = getattr(module, _FORWARD)
    setattr(module, _FORWARD, partial(around, own))
    try:
        yield
    finally:
        setattr(module, _FORWARD, own)


def offloaded(model: nn.Module, name: str) -> Tensor | None:
    """Read a parameter or buffer that is kept in memory or on a disk; None if accelerate keeps none. 1.15.

    Args:
        model: that was dispatched.
        name: of the tensor in the model.
    """
    path = name.split(".")
    for depth in reversed(range(len(path))):
        for hook in _hooks(model.get_submodule(".".join(path[:depth]))):
            kept = getattr(hook, "weights_map", None)
            if kept is not None and hook.offload:
                with suppress(KeyError):
                    tensor: Tensor = kept[".".join(path[depth:])]
                    return tensor
    return None


def idle_hooks(model: nn.Module) -> dict[int, Any]:
    """Make hooks that do nothing, for `copy.deepcopy` to put in the place of a model's own. 1.15."""
    if not is_dispatched(model):
        return {}
    from accelerate.hooks import ModelHook

    return {id(vars(m)[_HOOK]): ModelHook() for m in model.modules() if is_hooked(m)}


def remove_hooks(model: nn.Module) -> None:
    """Take accelerate's hooks off a model. 1.15."""
    if is_dispatched(model):
        from accelerate.hooks import remove_hook_from_module

        remove_hook_from_module(model, recurse=True)


def _hooks(module: nn.Module) -> list[Any]:
    """List the hooks of a module, which may be put together in one."""
    hook = vars(module).get(_HOOK)
    return [] if hook is None else list(getattr(hook, "hooks", [hook]))
