"""One op under taps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from inc_mp_plugin.core.errors import PluginError
from inc_mp_plugin.libraries.torch import leaves, version_of


@dataclass(slots=True)
class Tap:
    """One op: its module, its column in the results, and its calls whose weight gradient is due."""

    name: str
    kind: str
    module: Any  # an nn.Module, whose attributes depend on its kind
    column: int
    calls: int = 0
    weight: Tensor | None = None  # as the calls had it: between passes it may be elsewhere
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # input, output gradient


def is_empty(args: Any, kwargs: Any) -> bool:
    """Tell whether a call is of an expert that no token was sent to."""
    return any(isinstance(x, Tensor) and not x.numel() for x in leaves((args, kwargs)))


def check_unchanged(op: str, value: Tensor, version: int) -> None:
    """Check that no op has changed a tensor in place.

    Args:
        op: that read it.
        value: the tensor.
        version: of the tensor when it was read.

    Raises:
        PluginError: one has.
    """
    if version_of(value) != version:
        message = (
            f"the input of op {op!r} is changed in place after the op has read it, so its "
            "sensitivity would be wrong; replace the in-place operation in the model's forward"
        )
        raise PluginError(message)
