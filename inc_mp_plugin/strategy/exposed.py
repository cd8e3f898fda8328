"""Experts and attention products of a model as modules, for as long as INC has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from inc_mp_plugin.libraries.transformers import implementations_of
from inc_mp_plugin.model.attention import expose_bgemms, hide_bgemms
from inc_mp_plugin.model.experts import expose_experts, hide_experts, show_experts


@dataclass(frozen=True, slots=True)
class Exposed:
    """Names of modules that were exposed in a model; nothing but names, for models get copied."""

    experts: tuple[str, ...]
    attention: tuple[str, ...]
    implementations: Mapping[str, str | None]

    @staticmethod
    def in_model(model: nn.Module, *, products: bool) -> Exposed:
        """Expose experts, as views of their fused weights, and attention products if they are wanted."""
        before = implementations_of(model) if products else {}
        experts = show_experts(model)
        return Exposed(experts, expose_bgemms(model) if products else (), before)

    def hide(self, model: nn.Module) -> None:
        """Undo all that was exposed in a model."""
        hide_bgemms(model, self.attention, self.implementations)
        hide_experts(model, self.experts)

    def keep(self, model: nn.Module) -> None:
        """Leave a model exposed for good: experts get weights of their own."""
        if self.experts:
            expose_experts(model)
