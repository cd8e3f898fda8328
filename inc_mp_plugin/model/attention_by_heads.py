"""Attention of some key heads at a time: of all heads, scores and weights would be most of a pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from inc_mp_plugin.libraries.glibc import give_back_freed
from inc_mp_plugin.libraries.transformers import implement, implementations_of, register_attention
from inc_mp_plugin.model.attention import IMPLEMENTATION, bgemm_attention
from inc_mp_plugin.model.attention_weights import groups_of_heads

_BY_HEADS = f"{IMPLEMENTATION}_by_heads"
# No hook sees these: a forward pass whose products run again with gradients counts for nothing.
_UNSEEN = SimpleNamespace(matmul_qk=torch.matmul, matmul_av=torch.matmul, training=False)

States = tuple[Tensor, Tensor, Tensor]  # queries, keys and values
Attend = Callable[[Any, States, slice], Tensor]  # takes what has the products, states, and their query heads


@contextmanager
def by_heads(model: nn.Module) -> Iterator[None]:
    """Let exposed attention run some key heads at a time inside a `with`.

    Its products are then called several times in a pass. With gradients on, they first run unseen, keep
    nothing but queries, keys and values, and run as modules when gradients are due.

    Args:
        model: whose products are exposed.
    """
    before = implementations_of(model)
    ours = [name for name, implementation in before.items() if implementation == IMPLEMENTATION]
    if ours:
        register_attention(_BY_HEADS, attention_by_heads)
    try:
        implement(model, dict.fromkeys(ours, _BY_HEADS))
        yield
    finally:
        implement(model, dict.fromkeys(ours, IMPLEMENTATION))


def attention_by_heads(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Compute what `bgemm_attention` does; of many scores, some key heads at a time.

    Query heads that share a key head run together: its gradient is the sum over them.

    Args:
        module: see `bgemm_attention`.
        query: see `bgemm_attention`.
        key: see `bgemm_attention`.
        value: see `bgemm_attention`.
        attention_mask: see `bgemm_attention`.
        scaling: see `bgemm_attention`.
        dropout: see `bgemm_attention`.
        softcap: see `bgemm_attention`.
        kwargs: what transformers passes along.

    Returns:
        Output of shape (batch, tokens, heads, value size), and the attention weights; None in their place if
        not all of them are there.
    """
    keys, shared = key.shape[1], query.shape[1] // key.shape[1]
    scores = len(query) * shared * query.shape[2] * key.shape[2]  # of one key head
    asked_for = kwargs.get("output_attentions") or getattr(module.config, "output_attentions", False)
    learned = attention_mask is not None and attention_mask.requires_grad
    groups = groups_of_heads(keys, scores)
    whole = len(groups) == 1 or learned or asked_for or (module.training and dropout)
    if whole or torch.compiler.is_compiling():
        return bgemm_attention(module, query, key, value, attention_mask, scaling, dropout, softcap)
    attend = partial(_attend, mask=attention_mask, scaling=scaling, softcap=softcap)
    states = (query, key, value)
    if torch.is_grad_enabled() and any(state.requires_grad for state in states):
        how = _Groups(module, attend, groups)
        return _ByHeads.apply(how, *states), None  # type: ignore[no-untyped-call]
    return _joined(attend, module, states, groups), None


class _Groups(NamedTuple):
    """The module that has the products, what computes a group by them, and the groups of key heads."""

    module: Any
    attend: Attend
    groups: Sequence[slice]


class _ByHeads(torch.autograd.Function):
    """Attention of one group of key heads after the other, with nothing kept but the states."""

    @staticmethod
    def forward(ctx: Any, how: _Groups, *states: Tensor) -> Tensor:
        """Compute the output, unseen, from queries, keys and values of all heads."""
        ctx.save_for_backward(*states)
        ctx.how = how
        return _joined(how.attend, _UNSEEN, _of_all(states), how.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Run each group once more, and compute the gradients of its states."""
        states, how = ctx.saved_tensors, ctx.how
        gradients = _of_all(map(torch.empty_like, states))
        for group in how.groups:
            give_back_freed()  # of the group before, which glibc may keep
            heads = _query_heads(states, group)
            with torch.enable_grad():
                own = _of_all(part.detach().requires_grad_() for part in _of_group(states, group))
                output = how.attend(how.module, own, heads)
            of_own = torch.autograd.grad(output, own, gradient[:, :, heads])
            for whole, part in zip(_of_group(gradients, group), of_own, strict=True):
                whole.copy_(part)
        return (None, *gradients)


def _joined(attend: Attend, products: Any, states: States, groups: Sequence[slice]) -> Tensor:
    """Compute the output of all groups, shape (batch, tokens, heads, value size)."""
    parts = [attend(products, _of_group(states, group), _query_heads(states, group)) for group in groups]
    return torch.cat(parts, dim=2)


def _of_all(states: Iterable[Tensor]) -> States:
    query, key, value = states
    return query, key, value


def _of_group(states: States, group: slice) -> States:
    query, key, value = states
    return query[:, _query_heads(states, group)], key[:, group], value[:, group]


def _query_heads(states: States, group: slice) -> slice:
    """Tell which query heads read a group of key heads."""
    shared = states[0].shape[1] // states[1].shape[1]
    return slice(group.start * shared, group.stop * shared)


def _attend(
    products: Any,
    states: States,
    heads: slice,
    *,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
) -> Tensor:
    """Compute the output of some query heads from their states; see `Attend`."""
    if mask is not None and mask.dim() > 2 and mask.shape[-3] > 1:
        mask = mask[..., heads, :, :]
    return bgemm_attention(products, *states, mask, scaling, softcap=softcap)[0]
