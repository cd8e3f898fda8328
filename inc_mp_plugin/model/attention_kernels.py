"""The kernels of attention, which compute the same with other rounding errors: eager and SDPA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from inc_mp_plugin.libraries.transformers import (
    asks_for_attention,
    implement,
    implementations_of,
    supports_sdpa,
)
from inc_mp_plugin.model.attention import IMPLEMENTATION

EAGER, SDPA = "eager", "sdpa"


def attention_kernel(model: nn.Module) -> str | None:
    """Name the attention that a model runs; several, such as those of two towers, are joined by commas.

    The products exposed by this package count as eager attention, which they equal bit by bit. None without
    attention of transformers.
    """
    names = {_public(name) for name in implementations_of(model).values() if name is not None}
    return ", ".join(sorted(names)) or None


@contextmanager
def in_other_kernel(model: nn.Module) -> Iterator[str | None]:
    """Run a model in SDPA attention if it is in eager attention, else in eager, inside a `with`.

    Yields:
        Name of the kernel; None where there is no other, and the model is as it was.
    """
    before = implementations_of(model)
    other = SDPA if attention_kernel(model) == EAGER else EAGER
    asks = any(asks_for_attention(kind) for kind in {type(module) for module in model.modules()})
    if not asks or (other == SDPA and not supports_sdpa(model)):
        yield None
        return
    try:
        implement(model, dict.fromkeys(before, other))
        yield other
    finally:
        implement(model, before)


def _public(name: str) -> str:
    return EAGER if name == IMPLEMENTATION else name
