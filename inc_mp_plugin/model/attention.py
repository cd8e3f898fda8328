"""The two BGEMMs of attention as modules, for stock transformers models.

INC swaps modules, but stock attention multiplies with `torch.matmul`. This file gives attention
modules two children, `matmul_qk` and `matmul_av` (the names optimum-habana uses), and routes the
attention through them: by transformers' attention *and* mask interfaces (without the second, a model
runs silently without a causal mask).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.transformers import (
    asks_for_attention,
    eager_attention,
    implement,
    implementations_of,
    register_attention,
)
from inc_mp_plugin.model.attention_weights import attention_weights

IMPLEMENTATION = "inc_mp_bgemm"


class Matmul(nn.Module):
    """A matrix product of two activations; INC matches the class by its name."""

    def forward(self, input: Tensor, other: Tensor, out: Tensor | None = None) -> Tensor:
        """Return `input @ other`.

        Args:
            input: shape (..., rows, inner).
            other: shape (..., inner, columns).
            out: tensor for the result, shape (..., rows, columns); a new one if None.
        """
        return torch.matmul(input, other, out=out)


def bgemm_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Run attention through `module.matmul_qk` and `module.matmul_av`, bit-identical to eager attention.

    With grouped queries, query heads that share a key head get a dimension of their own, so that
    keys and values are not copied: a copied element would be one rounding error counted many times.

    Args:
        module: the attention module, with children `matmul_qk` and `matmul_av`.
        query: shape (batch, heads, tokens, head size).
        key: shape (batch, key heads, keys, head size).
        value: shape (batch, key heads, keys, value size).
        attention_mask: added to the scores; broadcasts to (batch, heads, tokens, keys).
        scaling: factor of the scores; 1 / sqrt(head size) if None.
        dropout: probability, in training only.
        softcap: scores become softcap * tanh(scores / softcap).
        kwargs: what transformers passes along and attention does not need.

    Returns:
        Output of shape (batch, tokens, heads, value size), and the attention weights.
    """
    del kwargs
    batch, heads, tokens, size = query.shape
    shared = heads // key.shape[1]
    if scaling is None:
        scaling = size**-0.5
    if shared > 1:
        query = query.view(batch, key.shape[1], shared, tokens, size)
        key, value = key.unsqueeze(2), value.unsqueeze(2)
    if attention_mask is not None:  # that of a cache of a fixed length is longer than the keys
        attention_mask = attention_mask[..., : key.shape[-2]]
    scores = module.matmul_qk(query, key.transpose(-2, -1)).reshape(batch, heads, tokens, -1)
    weigh = partial(_weigh, mask=attention_mask, scaling=scaling, softcap=softcap, dtype=query.dtype)
    learned = attention_mask is not None and attention_mask.requires_grad
    weights = weigh(scores, slice(None)) if learned else attention_weights(scores, weigh, query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    grouped = weights.view(batch, -1, shared, tokens, weights.shape[-1]) if shared > 1 else weights
    output = module.matmul_av(grouped, value).reshape(batch, heads, tokens, -1)
    return output.transpose(1, 2).contiguous(), weights


def _weigh(
    scores: Tensor,
    heads: slice,
    *,
    mask: Tensor | None,
    scaling: float,
    softcap: float | None,
    dtype: torch.dtype,
) -> Tensor:
    """Compute the weights of some heads from their scores; see `bgemm_attention`."""
    scores = scores * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + (mask[..., heads, :, :] if mask.dim() > 2 and mask.shape[-3] > 1 else mask)
    return nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)


def attention_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Find the attention modules whose two products can be exposed, by name.

    A module qualifies when its forward asks transformers' attention interface which function to run,
    and its own eager function computes what `bgemm_attention` computes: tried on a few numbers, so
    that attention with sinks or position biases is left alone.
    """
    same: dict[type, bool] = {}
    modules = {}
    for name, module in model.named_modules():
        kind = type(module)
        if kind not in same:
            same[kind] = asks_for_attention(kind) and _eager_is_same(module)
        if same[kind]:
            modules[name] = module
    return modules


@contextmanager
def exposed_bgemms(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Expose the attention products inside a `with`; the model leaves as it came.

    Yields:
        Names of the attention modules that were given products.
    """
    before = implementations_of(model)
    names = expose_bgemms(model)
    try:
        yield names
    finally:
        hide_bgemms(model, names, before)


def expose_bgemms(model: nn.Module) -> tuple[str, ...]:
    """Expose the attention products: for good, or until `hide_bgemms`.

    Returns:
        Names of the attention modules that were given products; none if they were there already.
    """
    modules = {n: m for n, m in attention_modules(model).items() if not hasattr(m, "matmul_qk")}
    if modules:
        register_attention(IMPLEMENTATION, bgemm_attention)
        for module in modules.values():
            module.matmul_qk, module.matmul_av = (Matmul().train(module.training) for _ in range(2))
        implement(model, dict.fromkeys(implementations_of(model), IMPLEMENTATION))
    return tuple(modules)


def hide_bgemms(model: nn.Module, names: Iterable[str], implementations: Mapping[str, str | None]) -> None:
    """Take the products of these attention modules off again.

    Args:
        model: as `expose_bgemms` left it.
        names: what it returned.
        implementations: from `implementations_of`, before.
    """
    for name in names:
        module: Any = model.get_submodule(name)
        del module.matmul_qk, module.matmul_av
    if names:
        implement(model, implementations)


def _eager_is_same(module: nn.Module) -> bool:
    """Compare a module's own eager attention with ours on random numbers."""
    eager = eager_attention(module)
    if eager is None:
        return False
    probe: Any = nn.Module().eval()
    probe.matmul_qk, probe.matmul_av = Matmul(), Matmul()
    probe.num_key_value_groups = shared = getattr(module, "num_key_value_groups", 1)
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, shared, 3, 4, generator=generator)
    key, value = (torch.randn(1, 1, 3, 4, generator=generator) for _ in range(2))
    mask = torch.full((3, 3), -1e9).triu(1)[None, None]
    ours, _ = bgemm_attention(probe, query, key, value, mask, scaling=0.3)
    try:
        theirs, _ = eager(probe, query, key, value, mask, scaling=0.3)
    except AttributeError:  # it reads more of its module than attention needs, as GPT-2's of transformers 4
        return False
    return torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
