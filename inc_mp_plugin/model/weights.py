"""Weights between two passes, wherever they are kept then."""

from __future__ import annotations

from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import gathered, is_spread
from inc_mp_plugin.model.modules import module_of


def stored_weight(model: nn.Module, op: str) -> Tensor | None:
    """Return the weight of an op between two passes; None for a bgemm, which has none.

    Of a model that is spread over processes, all processes have to ask for the same weight at once.

    Args:
        model: as it is measured.
        op: its name.
    """
    weight = getattr(module_of(model, op), "weight", None)
    return gathered(weight).detach() if isinstance(weight, Tensor) else None


def are_here(model: nn.Module) -> bool:
    """Tell if the weights of a model are there between two passes, not only while it runs."""
    return not any(is_spread(parameter) for parameter in model.parameters())
