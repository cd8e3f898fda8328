"""Capture a model's data-flow graph with torch.export, on the meta device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import inference_mode, nn
from torch.fx import Node

from inc_mp_plugin.core.errors import CaptureError, InputError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.graph.expert_node import ExpertLayer, in_place_of_nodes
from inc_mp_plugin.graph.export import continue_from_cache, export, without_weights
from inc_mp_plugin.graph.habana import off_gaudi
from inc_mp_plugin.graph.ops import SortedProducts, sort_products
from inc_mp_plugin.graph.partition import partition
from inc_mp_plugin.graph.products import find_products
from inc_mp_plugin.graph.routing import emit_experts, router_widths
from inc_mp_plugin.graph.structure import structures, waits_for
from inc_mp_plugin.libraries.torch import without_autocast_on
from inc_mp_plugin.model.attention import exposed_bgemms
from inc_mp_plugin.model.batches import batch_size, map_tensors
from inc_mp_plugin.model.modules import class_names
from inc_mp_plugin.model.plain_batches import plain
from inc_mp_plugin.model.wrappers import unwrapped


def capture(model: nn.Module, example_inputs: Any, *, cached_tokens: int = 0) -> Graph:
    """Capture the ops of a model, their groups, and what cannot be quantized.

    The model is copied without its weights and exported on the meta device, so neither memory nor time
    depends on the size of the weights; the model itself is not touched. The attention products of stock
    transformers models become the ops `matmul_qk` and `matmul_av`. Every projection of every expert is an
    op, too, with the shape and the share of passes that even routing would give it.

    Args:
        model: any module that torch.export can trace.
        example_inputs: one batch; its shapes decide the MACs, which are counted per sample.
        cached_tokens: number of tokens in the key-value cache of a language model before these inputs. If
            there are any, the inputs are `{"input_ids": ...}` alone, and the graph is that of a decode step.

    Returns:
        Ops in execution order, their groups, and every product that cannot be quantized, with the reason.

    Raises:
        InputError: several devices or processes run parts of the model; or a cache is asked for, and the
            inputs are not `{"input_ids": ...}` alone.
        CaptureError: torch.export cannot trace the model, or the model has no quantizable op or no cache.
    """
    example_inputs = plain(example_inputs, "example_inputs")
    model = unwrapped(model, with_weights=False, dispatched=True)
    with inference_mode(mode=False):  # in which nothing could be traced
        skeleton = without_weights(model).eval()
        inputs = map_tensors(example_inputs, lambda t: t.to("meta"))
    if cached_tokens and not (isinstance(inputs, dict) and inputs.keys() == {"input_ids"}):
        message = "with cached_tokens, example_inputs must be {'input_ids': ...} alone"
        raise InputError(message)
    with (
        inference_mode(mode=False),
        exposed_bgemms(skeleton),
        without_autocast_on("meta"),
        off_gaudi(skeleton),
    ):
        modules = class_names(skeleton)
        routers = router_widths(skeleton)
        layers = emit_experts(skeleton)
        if cached_tokens:
            continue_from_cache(skeleton, inputs, cached_tokens)
        nodes = export(skeleton, inputs, example_inputs)
        samples = batch_size(example_inputs)
        products = sort_products(find_products(nodes), skeleton, samples, layers=layers, routers=routers)
    if not products.ops:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in products.unsupported[:3]) or "no product at all"
        message = f"nothing in {type(model).__name__} can be quantized ({reasons})"
        raise CaptureError(message)
    return _graph(nodes, products, {**modules, **_classes(layers)})


def _graph(nodes: list[Node], products: SortedProducts, modules: Mapping[str, str]) -> Graph:
    """Group the ops; a layer of experts counts as a single op until the end."""
    names = products.names
    groups = _groups(nodes, names, [op.name for op in products.ops])
    after = waits_for(nodes, names, groups)
    ops = {op.name: replace(op, after=after[op.name]) for op in products.ops}
    alike = structures(nodes, names, groups, ops)
    all_ops, all_groups = in_place_of_nodes(ops.values(), groups, products.layers)
    return Graph(all_ops, all_groups, tuple(products.unsupported), modules, alike)


def _classes(layers: Mapping[str, ExpertLayer]) -> dict[str, str]:
    """Map the name of every module that experts consist of to its class name."""
    return {
        f"{name}.{inner}".rstrip("."): type(module).__name__
        for layer in layers.values()
        for name, expert in layer.experts.items()
        for inner, module in expert.named_modules()
    }


def _groups(nodes: list[Node], names: Mapping[Node, str], ops: list[str]) -> tuple[tuple[str, ...], ...]:
    """Partition the graph; groups that share an op (a module called twice) are merged."""
    predecessors: Mapping[Node, list[Node]] = {
        node: node.all_input_nodes for node in nodes if node.op != "output"
    }
    merged: list[dict[str, None]] = []
    for group in partition(predecessors, names.keys()):
        members = dict.fromkeys(names[node] for node in group)
        for other in [m for m in merged if m.keys() & members.keys()]:
            merged.remove(other)
            members = {**other, **members}
        merged.append(members)
    order = {name: index for index, name in enumerate(ops)}
    ordered = [sorted(group, key=order.__getitem__) for group in merged]
    return tuple(tuple(group) for group in sorted(ordered, key=lambda g: order[g[0]]))
