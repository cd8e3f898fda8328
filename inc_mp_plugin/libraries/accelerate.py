"""What accelerate leaves on a model that it spreads over devices; last checked with 1.15."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

_HOOK = "_hf_hook"  # moves a module's weights and inputs


def is_dispatched(model: nn.Module) -> bool:
    """Tell whether accelerate moves parts of a model between devices, or from a disk. 1.15."""
    return any(hasattr(module, _HOOK) for module in model.modules())
