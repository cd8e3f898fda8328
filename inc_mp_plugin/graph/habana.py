"""Capture of optimum-habana's models on the meta device, although their code asks for a Gaudi.

The code asks for a Gaudi where it wants its fused kernels; anywhere else it should run plain torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.graph.expert_node import emit
from inc_mp_plugin.libraries.optimum_habana import FUSED_ROPE, is_fused_attention, ropes_of
from inc_mp_plugin.model.expert_kernels import Arguments, kernel_calls


@contextmanager
def off_gaudi(skeleton: nn.Module) -> Iterator[None]:
    """Let a model without weights run on the meta device although its code is optimum-habana's.

    Args:
        skeleton: a model without weights, whose modules are changed for good; changed Python modules are
            restored.
    """
    for module in skeleton.modules():
        if is_fused_attention(module):
            module.forward = _fused_attention
    with ExitStack() as stack:
        stack.enter_context(kernel_calls(_emit_kernel))
        for code in {type(module).__module__: None for module in skeleton.modules()}:
            _repair_rope(sys.modules.get(code), stack)
        yield


def _emit_kernel(call: Arguments) -> Tensor:
    return emit(call["hidden_states"], call["expert_routing_table"])


def _fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None = None,
    *unused: Any,
    **also_unused: Any,
) -> Tensor:
    """Compute the result of optimum-habana's fused attention module without its kernel."""
    del dropout_p, unused, also_unused
    return nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask, is_causal=is_causal, scale=scale, enable_gqa=True
    )


def _repair_rope(code: ModuleType | None, stack: ExitStack) -> None:
    """Make a rotary embedding take the cosines of the given positions, where it breaks on those of all.

    Off Gaudi, the embedding of Mistral and Mixtral in optimum-habana 1.21 breaks.
    """
    own, plain = ropes_of(code)
    if own is None or plain is None:
        return
    repaired = partial(_rotate, plain)
    query, table, positions = torch.zeros(1, 2, 3, 4), torch.zeros(5, 4), torch.arange(3)[None]
    arguments = (query, query, table, table, positions)
    if not _runs(own, *arguments) and _runs(repaired, *arguments):
        setattr(code, FUSED_ROPE, repaired)
        stack.callback(setattr, code, FUSED_ROPE, own)


def _rotate(
    plain: Callable[..., Any], q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, position_ids: Tensor, *_: Any
) -> Any:
    return plain(q, k, cos[position_ids], sin[position_ids])


def _runs(function: Callable[..., Any], *args: Any) -> bool:
    try:
        function(*args)
    except (RuntimeError, TypeError, IndexError):
        return False
    return True
