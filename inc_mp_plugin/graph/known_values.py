"""Trace a model around the values of its inputs: what follows from them alone is computed, not traced.

Vision towers such as Qwen2.5-VL's make loops, windows and shapes of the sizes of images. With the inputs'
values at hand their Python code runs as it is; all that has met a weight has a shape, and no value.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from inc_mp_plugin.libraries.torch import leaves, map_leaves, without_modes

_META = torch.device("meta")


class KnownValues(TorchFunctionMode):
    """Function mode that computes on the CPU what reads no traced tensor, as tensors on meta are.

    Where a known tensor meets a traced one, its shape goes on alone. So does that of a floating-point tensor
    that is made on meta: activations will be put into it.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute or trace one call.

        Raises:
            RuntimeError: it writes traced values into a known tensor, whose own values would then be wrong.
        """
        kwargs = kwargs or {}
        parts = leaves((args, kwargs))
        if not any(isinstance(part, Tensor) and part.is_meta for part in parts):
            return _computed(function, args, kwargs, on_meta=any(map(_is_meta, parts)))
        if args and isinstance(args[0], Tensor) and not args[0].is_meta and _writes(function):
            message = "data-dependent: results of weights are written into a tensor of known values"
            raise RuntimeError(message)
        if function is Tensor.expand_as and not args[0].is_meta:
            return self.__torch_function__(Tensor.expand, types, (args[0], args[1].shape))
        if function is Tensor.__getitem__:
            args = (args[0], _counted(args[1]))
        args, kwargs = map_leaves(_shape_alone, (args, kwargs))
        return function(*args, **kwargs)


def _computed(function: Any, args: Any, kwargs: Any, *, on_meta: bool) -> Any:
    """Compute a call on the CPU; floating-point results for meta go there, without their values."""
    with without_modes():
        args, kwargs = map_leaves(
            lambda part: torch.device("cpu") if _is_meta(part) else part, (args, kwargs)
        )
        result = function(*args, **kwargs)
    if not on_meta:
        return result
    return map_leaves(lambda part: _shape_alone(part) if _is_activation(part) else part, result)


def _writes(function: Any) -> bool:
    """Tell whether a method changes its first operand."""
    name = getattr(function, "__name__", "")
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))


def _counted(index: Any) -> Any:
    """Put the numbers of its elements in the place of every known mask, so that their count is known."""
    parts: list[Any] = []
    for part in index if isinstance(index, tuple) else (index,):
        if isinstance(part, Tensor) and not part.is_meta and part.dtype == torch.bool:
            with without_modes():
                parts += part.nonzero(as_tuple=True)
        else:
            parts.append(part)
    return tuple(parts) if isinstance(index, tuple) or len(parts) != 1 else parts[0]


def _shape_alone(part: Any) -> Any:
    """Make a tensor of the same shape on meta of a known one."""
    if isinstance(part, Tensor) and not part.is_meta:
        return torch.empty(part.shape, dtype=part.dtype, device=_META)
    return part


def _is_activation(part: Any) -> bool:
    return isinstance(part, Tensor) and part.is_floating_point()


def _is_meta(part: Any) -> bool:
    return part == _META if isinstance(part, torch.device) else isinstance(part, str) and part == "meta"
