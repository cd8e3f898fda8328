"""Export a model on the meta device: nodes of its forward pass, with shapes and no weights."""

from __future__ import annotations

import copy
import gc
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from inc_mp_plugin.core.errors import CaptureError
from inc_mp_plugin.graph.known_values import KnownValues
from inc_mp_plugin.graph.trace_errors import asks_for_a_value, trace_fault
from inc_mp_plugin.libraries.accelerate import idle_hooks, remove_hooks
from inc_mp_plugin.libraries.torch import buffers_of, lazy_graphs, parameters_of, without_stack_traces
from inc_mp_plugin.libraries.transformers import cache_argument, cache_of
from inc_mp_plugin.model.batches import arguments, map_tensors

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a model deeply, with meta tensors for its tensors; shared tensors stay shared."""
    memo: dict[int, Any] = idle_hooks(model)
    for module in model.modules():
        for tensor in [*parameters_of(module).values(), *buffers_of(module).values()]:
            if tensor is not None and id(tensor) not in memo:
                meta = torch.empty_like(tensor, device="meta", requires_grad=False)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(meta, False) if is_parameter else meta
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo[id(value)] = torch.empty_like(value, device="meta")
    skeleton = copy.deepcopy(model, memo)
    remove_hooks(skeleton)
    return skeleton


def export(skeleton: nn.Module, inputs: Batch, values: Batch | None = None) -> list[Node]:
    """Export one forward pass of a model on the meta device, and return its nodes.

    Where its code asks for values that no tensor on meta has, it is exported once more, around the values of
    its inputs (`graph.known_values`).

    Args:
        skeleton: a model without weights; its `forward` is replaced for good where values are asked for.
        inputs: on the meta device.
        values: the same inputs with their values; without, every model that asks for one is refused.

    Raises:
        CaptureError: torch.export cannot trace the model.
    """
    args, kwargs = arguments(skeleton, inputs)
    first: Exception | None = None
    try:
        nodes = _nodes(skeleton, args, kwargs)
        if values is None or not any(map(_is_of_unknown_size, nodes)):
            return nodes
    # Any error of the model's own code may surface here; it is kept as the cause.
    except Exception as error:
        if values is None or not asks_for_a_value(error):
            raise CaptureError(trace_fault(error, skeleton)) from error
        first = error
    args, kwargs = arguments(skeleton, map_tensors(values, lambda tensor: tensor.detach().cpu()))
    forward = skeleton.forward

    def with_values() -> Any:
        with KnownValues():
            return forward(*args, **kwargs)

    skeleton.forward = with_values
    try:
        return _nodes(skeleton, (), {})
    except Exception as error:
        # The second one tells of the value that does not follow from the inputs, should it be one of these.
        cause = error if first is None or asks_for_a_value(error) else first
        raise CaptureError(trace_fault(cause, skeleton)) from cause


def _is_of_unknown_size(node: Node) -> bool:
    """Tell if a node's size follows from values, as the number of the images that are not empty does."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


def _nodes(skeleton: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Node]:
    with _without_waste(), warnings.catch_warnings():
        # The skeleton is thrown away, so what a forward pass leaves on it is no matter.
        warnings.filterwarnings("ignore", "The tensor attribute")
        program = torch.export.export(skeleton, args, kwargs, strict=False)
    return list(program.graph.nodes)


def continue_from_cache(skeleton: nn.Module, inputs: dict[str, Any], cached_tokens: int) -> None:
    """Turn the forward pass of a language model into one decode step, with tokens in its cache.

    The cache is the one that the model itself makes of a prompt, so its shapes are right for every
    kind of attention: an object with layers, or optimum-habana's tuple of keys and values per layer.

    Args:
        skeleton: a language model without weights, whose `forward` is replaced for good.
        inputs: `{"input_ids": ...}`, shape (batch size, tokens), on the meta device.
        cached_tokens: number of tokens in the cache before these inputs.

    Raises:
        CaptureError: the model makes no cache that its layers can be continued from.
    """
    ids = inputs["input_ids"]
    prompt = torch.empty(ids.shape[0], cached_tokens, dtype=ids.dtype, device="meta")
    try:
        with torch.no_grad():
            cache: Any = cache_of(skeleton(input_ids=prompt, use_cache=True))
        layers = None if isinstance(cache, tuple) else cache.layers
    except (RuntimeError, TypeError, AttributeError) as error:
        message = (
            f"a decode step of {type(skeleton).__name__} cannot be captured: it makes no key-value cache "
            f"on the meta device ({error}); set request.output_tokens to 0"
        )
        raise CaptureError(message) from error
    forward = skeleton.forward

    def step(input_ids: Tensor) -> Any:
        fresh = copy.copy(cache)
        if layers is not None:
            fresh.layers = [copy.copy(layer) for layer in layers]
        return forward(input_ids=input_ids, use_cache=True, **cache_argument(forward, fresh)).logits

    skeleton.forward = step


@contextmanager
def _without_waste() -> Iterator[None]:
    """Skip the work that export does for compilers alone: half of its time on a hundred layers.

    That work is stack traces of every node, Python code of every intermediate graph, and looking for garbage
    among a million objects that are all alive.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        with without_stack_traces(), lazy_graphs():
            yield
    finally:
        if collecting:
            gc.enable()
