"""Names by which optimum-habana's code is recognized; last checked with 1.21.2, on transformers 4.55."""

from __future__ import annotations

from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

PLAIN_ROPE, FUSED_ROPE = "apply_rotary_pos_emb", "apply_customized_rope"


def is_of_optimum_habana(module: nn.Module) -> bool:
    """Tell whether a module's class, or the forward it was given, is optimum-habana's.

    It replaces forwards in classes of transformers, so the class alone does not say. 1.21.
    """
    kind = type(module)
    parts = (kind, kind.forward)
    return any(getattr(part, "__module__", "").startswith("optimum.habana") for part in parts)


def is_fused_attention(module: nn.Module) -> bool:
    """Tell whether a module is that around Gaudi's attention kernel: each model has a class of it. 1.21."""
    return type(module).__name__ == "ModuleFusedSDPA"


def ropes_of(code: ModuleType | None) -> tuple[Any, Any]:
    """Find the functions for rotary embeddings in a model's code: around Gaudi's kernel, and the plain one.

    One that the code does not have is None. They are no part of any class, only their names tell. 1.21.
    """
    return getattr(code, FUSED_ROPE, None), getattr(code, PLAIN_ROPE, None)
