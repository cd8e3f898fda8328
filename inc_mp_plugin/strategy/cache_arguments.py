"""Key-value caches among the arguments of a call: whether the call goes on from one, and its removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from inc_mp_plugin.libraries.transformers import (
    EMBEDDINGS,
    IDS,
    MASK,
    PREFIXES,
    holds_states,
    is_cache,
    is_filled,
)

_OF_EARLIER_TOKENS = ("past", "cache")  # in the names of arguments that hold what earlier calls computed


def goes_on(arguments: Mapping[str, Any]) -> bool:
    """Tell if a call continues an earlier one: replayed without its cache it would be another.

    Any of these says so, for libraries pass caches under changing names and in changing forms, and some
    keep them inside the model:

    - an object, wherever it lies in the arguments, that holds states of earlier tokens;
    - keys and values as tensors, layer by layer, beside tokens or under a name of a cache;
    - an attention mask that is longer than the tokens;
    - positions that begin above 0: any `cache_position`, and the position of a single token.

    Args:
        arguments: of the call, by the names of the forward's parameters; what is passed by position or by
            other keywords is among them, too.
    """
    tokens = any(
        isinstance(v, Tensor) and v.dim() == 2 and not v.is_floating_point() for v in arguments.values()
    )
    return (
        any(_holds_cache(name, value, tokens=tokens) for name, value in arguments.items())
        or any(_mask_is_longer(arguments, prefix) for prefix in PREFIXES)
        or any(_begins_later(name, value) for name, value in arguments.items())
    )


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Leave an empty cache out of the arguments of a call, and what was made for it out of their masks.

    A cache of full size from the start takes masks of shape (batch, 1, tokens, size), whose columns beyond
    the tokens belong to what is not there yet. Where such a mask says no more than which tokens are padding
    it becomes that, of shape (batch, tokens); else its columns are cut.
    """
    others = {name: value for name, value in arguments.items() if not any(map(is_cache, _parts(value)))}
    if len(others) == len(arguments):
        return others
    masks = {f"{prefix}{MASK}" for prefix in PREFIXES}
    return {name: _plain(value) if name in masks else value for name, value in others.items()}


def _holds_cache(name: str, value: Any, *, tokens: bool) -> bool:
    parts = list(_parts(value))
    if any(holds_states(part) for part in parts if _is_object(part)):
        return True
    if any(word in name for word in _OF_EARLIER_TOKENS):
        return any(isinstance(part, Tensor) and is_filled(part) for part in parts)
    return tokens and _is_layered(value) and any(map(is_filled, parts))


def _parts(value: Any) -> Iterator[Any]:
    """Yield the values that lie in nested tuples, lists and mappings; objects stay whole."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for part in value:
            yield from _parts(part)
    else:
        yield value


def _is_object(value: Any) -> bool:
    """Tell if a value is more than a number, a text or a tensor, and no function, class or module.

    A cache counts even if it can be called.
    """
    plain = value is None or isinstance(value, bool | int | float | complex | str | bytes | Tensor)
    return not plain and (not callable(value) or is_cache(value))


def _is_layered(value: Any) -> bool:
    """Tell if a value is a sequence of layers, each a sequence of at least two tensors, all layers alike."""
    if not isinstance(value, tuple | list) or not all(isinstance(layer, tuple | list) for layer in value):
        return False
    shapes = {
        tuple(tuple(part.shape) if isinstance(part, Tensor) else () for part in layer) for layer in value
    }
    return len(shapes) == 1 and all(len(layer) > 1 and () not in layer for layer in shapes)


def _mask_is_longer(arguments: Mapping[str, Any], prefix: str) -> bool:
    mask = arguments.get(f"{prefix}{MASK}")
    inputs = (arguments.get(f"{prefix}{name}") for name in (IDS, EMBEDDINGS))
    tokens = next((value for value in inputs if isinstance(value, Tensor) and value.dim() > 1), None)
    if not isinstance(mask, Tensor) or mask.dim() != 2 or tokens is None:
        return False
    return mask.shape[1] > tokens.shape[1]


def _begins_later(name: str, value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_floating_point() or not value.dim() or not value.numel():
        return False
    if name == "cache_position":
        return int(value[..., 0].min()) > 0
    # Some models count from above 0, so of several tokens the first position says nothing.
    return name.endswith("position_ids") and value.shape[-1] == 1 and int(value.min()) > 0


def _plain(mask: Any) -> Any:
    """Return a mask without the columns of a cache.

    Of masks by kind of attention that all become masks of padding, the first is returned: they all say the
    same of padding.
    """
    if isinstance(mask, Mapping):
        plain = {kind: _plain(part) for kind, part in mask.items()}
        tensors = [part for part in plain.values() if isinstance(part, Tensor)]
        return tensors[0] if tensors and all(part.dim() == 2 for part in tensors) else plain
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        return mask
    cut = mask[..., : mask.shape[-2]]
    allowed = cut if cut.dtype == torch.bool else cut >= 0
    padding = allowed.diagonal(dim1=-2, dim2=-1)[:, 0]
    row = torch.arange(cut.shape[-2], device=cut.device)
    behind = row[:, None] - row
    window = int((behind * allowed).max()) + 1  # all earlier tokens where a model has no window
    expected = (behind >= 0) & (behind < window) & padding[:, None, None, :]
    return padding.long() if bool((allowed == expected).all()) else cut
