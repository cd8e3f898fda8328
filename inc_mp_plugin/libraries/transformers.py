"""Private parts of transformers, and parts that have changed; last checked with 5.24, 5.23 and 4.55."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

IDS, EMBEDDINGS, MASK = "input_ids", "inputs_embeds", "attention_mask"
PREFIXES = ("", "decoder_")  # of these in the forward of a decoder beside an encoder; 5.24
_ATTENTION = "_attn_implementation_internal"
_MASK_LEFT_OUT = ("sinks", "s_aux", "position_bias")
_DEEP = 5  # how deep tensors lie in a cache: its parts, their layers, the layers' states by number

Implementations = Mapping[str, str | None]


def in_dtype(dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the argument of the auto classes that sets a model's dtype.

    It is `torch_dtype` until 4.55, `dtype` later. 5.24, 4.55.
    """
    from transformers import PretrainedConfig

    return {"dtype" if hasattr(PretrainedConfig(), "dtype") else "torch_dtype": dtype}


def leaves_weights_in_files() -> bool:
    """Tell whether all weights of a model may stay in their files; 4.55 refuses a model with no other place.

    The function that does it has no public name. 5.24, 4.55.
    """
    from transformers.integrations import accelerate

    return hasattr(accelerate, "accelerate_disk_offload")


def mismatched_weights(info: Mapping[str, Any]) -> list[str]:
    """List the names of weights whose sizes differ, from a loading info.

    5.24 gives (name, size, size) for each, 4.55 the name.
    """
    return [entry if isinstance(entry, str) else entry[0] for entry in info["mismatched_keys"]]


def implementations_of(model: nn.Module) -> dict[str, str | None]:
    """Read how attention is computed, by the name of every module that has a configuration.

    The public getter of 4.55 fills in a default where nothing is set. 5.24.
    """
    return {
        name: getattr(module.config, _ATTENTION)
        for name, module in model.named_modules()
        if hasattr(getattr(module, "config", None), _ATTENTION)
    }


def implement(model: nn.Module, implementations: Implementations) -> None:
    """Set how attention is computed; names that are no modules any more are passed over.

    The public setter would also overwrite sub-configurations whose values are not ours to restore. 5.24.
    """
    modules = dict(model.named_modules())
    for name in implementations.keys() & modules.keys():
        setattr(modules[name].config, _ATTENTION, implementations[name])


def register_attention(name: str, attention: Callable[..., Any]) -> None:
    """Make an attention function known, with the mask that eager attention takes.

    Without a mask of that name a model runs without a causal mask, and says nothing. 5.24.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, eager_mask)


def asks_for_attention(kind: type[nn.Module]) -> bool:
    """Tell whether a module looks its attention function up; only its code says so. 5.24."""
    code = getattr(inspect.unwrap(kind.forward), "__code__", None)
    return code is not None and "ALL_ATTENTION_FUNCTIONS" in code.co_names


def supports_sdpa(model: nn.Module) -> bool:
    """Tell whether every part of a model says that SDPA attention computes what its eager attention does.

    The public setter would refuse, but it also overwrites sub-configurations. 5.24.
    """
    flags = [getattr(type(module), "_supports_sdpa", None) for module in model.modules()]
    known = [flag for flag in flags if flag is not None]
    return bool(known) and all(known)


def eager_attention(module: nn.Module) -> Callable[..., Any] | None:
    """Find the attention function that a module calls by default; None if it has sinks or position biases.

    It stands beside the class, under a name that only a habit fixes. 5.24.
    """
    eager: Callable[..., Any] | None
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if eager is None:
        return None
    names = {*dict(module.named_parameters(recurse=False)), *inspect.signature(eager).parameters}
    return None if names.intersection(_MASK_LEFT_OUT) else eager


def asks_for_experts(kind: type[nn.Module]) -> bool:
    """Tell whether a module of experts looks up what multiplies them; only its code says so. 5.24, 5.23."""
    code = getattr(kind.forward, "__code__", None)
    names = () if code is None else (*code.co_names, *code.co_freevars)
    return bool({"experts_interface", "ALL_EXPERTS_FUNCTIONS"}.intersection(names))


def gate_of(experts: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the function that joins gate and up in a module of experts.

    A module without a method of its own for it has the default, act_fn(gate) * up. 5.24.
    """
    own: Callable[[Tensor], Tensor] | None = getattr(experts, "_apply_gate", None)
    return own or MethodType(_default_gate, experts)


def _default_gate(self: Any, both: Tensor) -> Tensor:
    gate, up = both.chunk(2, dim=-1)
    joined: Tensor = self.act_fn(gate) * up
    return joined


def commit_of(name: str) -> str:
    """Find the commit of a model on the hub by the place of its files in the cache: `snapshots/<commit>`.

    Configurations of 4.55 tell it, in a private attribute; those of 5.23 do not. 5.24, 5.23, 4.55.

    Raises:
        OSError: there is no such model, or no way to it.
    """
    from transformers.utils import cached_file

    return Path(cached_file(name, "config.json")).parent.name


def save_under_own_names(model: nn.Module) -> None:
    """Let a model be saved under its modules' names, which INC goes by.

    From 5.0 a model is saved under the names of the checkpoint that it came from; no setting for it. 5.24.
    """
    vars(model)["_weight_conversions"] = []


def cache_argument(forward: Callable[..., Any], cache: Any) -> dict[str, Any]:
    """Give a key-value cache as a keyword of a forward.

    It is `cache` from 5.24 on, `past_key_values` before. 5.24.
    """
    name = "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"
    return {name: cache}


def position_argument(forward: Callable[..., Any], start: int, tokens: int, device: str) -> dict[str, Any]:
    """Give the positions of tokens in a key-value cache as a keyword, if a forward takes them.

    Later versions of a forward ask the cache. 4.55 asks it, too, if nothing is given; a static cache then
    counts the keys that are not zero, and misses those of padding tokens. 5.24, 4.55.

    Args:
        forward: of the model.
        start: position of the first token.
        tokens: how many there are.
        device: of the positions.
    """
    import torch

    if "cache_position" not in inspect.signature(forward).parameters:
        return {}
    return {"cache_position": torch.arange(start, start + tokens, device=device)}


def cache_of(output: Any) -> Any:
    """Return the key-value cache of an output: `cache` from 5.24 on, `past_key_values` before. 5.24.

    Raises:
        AttributeError: it has neither.
    """
    return output.cache if hasattr(output, "cache") else output.past_key_values


def new_static_cache(model: nn.Module, samples: int, length: int) -> Any:
    """Make a key-value cache that has its full size from the start.

    4.55 needs all of these arguments, and another class where layers see a window of the past alone: its
    StaticCache would let them see all. Later versions pass over what they do not need. 5.24, 5.23, 4.55.

    Args:
        model: a language model.
        samples: in a batch.
        length: tokens that it has room for.
    """
    import transformers

    like: Any = next(model.parameters())
    kind = getattr(transformers, "HybridCache", transformers.StaticCache)
    return kind(
        config=model.config,
        max_batch_size=samples,
        max_cache_len=length,
        device=like.device,
        dtype=like.dtype,
    )


def is_cache(value: Any) -> bool:
    """Tell whether an object is a key-value cache: one that tells its length. 5.24, 5.23, 4.55."""
    return callable(getattr(value, "get_seq_length", None))


def holds_states(value: Any) -> bool:
    """Tell whether an object, such as a cache, holds states of earlier tokens.

    A cache of full size from the start holds zeros at first, so a cache is asked for its length. Those of
    models with a recurrence (Mamba) have none, or raise; of them, and of any other object, a tensor of at
    least three axes that is not zero is a state. Jamba's in 4.55 tells a length of two when it is empty, so
    a length counts only with tensors to it, should there be any at all. 5.24, 5.23, 4.55.
    """
    tensors = list(_tensors_in(value, _DEEP))
    if is_cache(value):
        try:
            has_length = int(value.get_seq_length()) > 0
            return has_length and (not tensors or any(bool(tensor.any()) for tensor in tensors))
        except (ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
            pass  # it has no layer with a length
    return any(map(is_filled, tensors))


def is_filled(tensor: Tensor) -> bool:
    """Tell whether a tensor may be a state of earlier tokens: per sample and channel, and not zero. 5.24."""
    return tensor.is_floating_point() and tensor.dim() > 2 and bool(tensor.any())


def _tensors_in(value: Any, depth: int) -> Iterator[Tensor]:
    """Yield the tensors of at least two axes that lie in an object, at most `depth` levels deep.

    The object may keep them in mappings, lists, tuples or attributes.
    """
    from torch import Tensor

    if isinstance(value, Tensor):
        if value.dim() > 1:
            yield value
        return
    if isinstance(value, Mapping):
        value = list(value.values())
    elif not isinstance(value, list | tuple):
        value = list(getattr(value, "__dict__", {}).values())
    if depth:
        for part in value:
            yield from _tensors_in(part, depth - 1)
