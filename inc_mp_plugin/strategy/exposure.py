"""Experts and attention products of a model as modules, for as long as INC has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from inc_mp_plugin.inc.attributes import Attributes, attributes_of
from inc_mp_plugin.libraries.transformers import implementations_of
from inc_mp_plugin.model.attention import expose_bgemms, hide_bgemms
from inc_mp_plugin.model.experts import expose_experts, hide_experts, show_experts


@dataclass(frozen=True, slots=True)
class Exposure:
    """Modules that were exposed in a model, and the attributes that all modules had then.

    These are names alone, because models get copied.
    """

    experts: tuple[str, ...]
    attention: tuple[str, ...]
    implementations: Mapping[str, str | None]
    attributes: Attributes

    @staticmethod
    def in_model(model: nn.Module, *, products: bool) -> Exposure:
        """Expose experts, as views of their fused weights, and attention products if asked for."""
        before = implementations_of(model) if products else {}
        experts, attention = show_experts(model), expose_bgemms(model) if products else ()
        return Exposure(experts, attention, before, attributes_of(model))

    def hide(self, model: nn.Module) -> None:
        """Undo the exposure in a model."""
        hide_bgemms(model, self.attention, self.implementations)
        hide_experts(model, self.experts)

    def keep(self, model: nn.Module) -> None:
        """Leave a model exposed for good: experts get weights of their own."""
        if self.experts:
            expose_experts(model)
