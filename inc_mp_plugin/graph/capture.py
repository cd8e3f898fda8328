"""Capture a model's data-flow graph with torch.export, on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn
from torch.fx import Node

from inc_mp_plugin.attention import exposed_bgemms
from inc_mp_plugin.batches import batch_size, map_tensors
from inc_mp_plugin.errors import CaptureError, InputError
from inc_mp_plugin.graph.export import continue_from_cache, export, without_weights
from inc_mp_plugin.graph.partition import partition
from inc_mp_plugin.graph.products import OTHER_PRODUCTS, Product, find_products
from inc_mp_plugin.graph.structure import structures, waits_for
from inc_mp_plugin.plan import FUSED_EXPERTS, Graph, Op, Unsupported

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch

# Classes that INC swaps for FP8 ones, by class name as INC does it, and the kind of op of each.
QUANTIZABLE = {"Linear": "linear", "FalconLinear": "linear", "Conv2d": "conv2d", "Matmul": "bgemm"}


def capture(model: nn.Module, example_inputs: Batch, *, cached_tokens: int = 0) -> Graph:
    """Capture the ops of a model, their groups, and what cannot be quantized.

    The model is copied without its weights and exported on the meta device, so neither memory nor
    time depends on their size; the model itself is not touched. The attention products of stock
    transformers models become the ops `matmul_qk` and `matmul_av`.

    Args:
        model: any module that torch.export can trace.
        example_inputs: one batch; its shapes decide the MACs, which are counted per sample.
        cached_tokens: of a language model, the tokens in its key-value cache before these inputs,
            which are then `{"input_ids": ...}` alone: the graph is that of a decode step.

    Returns:
        Ops in execution order, their groups, and every product that cannot be quantized, with why.

    Raises:
        InputError: a cache is asked for, and the inputs are not `{"input_ids": ...}` alone.
        CaptureError: torch.export cannot trace the model, it holds no quantizable op, or it has no cache.
    """
    skeleton = without_weights(model).eval()
    inputs = map_tensors(example_inputs, lambda t: t.to("meta"))
    with exposed_bgemms(skeleton):
        modules = {name: type(m).__name__ for name, m in skeleton.named_modules() if name}
        if cached_tokens:
            if not isinstance(inputs, dict) or inputs.keys() != {"input_ids"}:
                message = "a decode step takes {'input_ids': ...} alone"
                raise InputError(message)
            continue_from_cache(skeleton, inputs, cached_tokens)
        nodes = export(skeleton, inputs)
        products = list(find_products(nodes))
        ops, unsupported = _sort(products, skeleton, batch_size(example_inputs))
    if not ops:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in unsupported[:3]) or "no product at all"
        message = f"nothing in {type(model).__name__} can be quantized ({reasons})"
        raise CaptureError(message)
    by_name = {op.name: op for op in ops}
    names = {product.node: product.module for product in products if product.module in by_name}
    groups = _groups(nodes, names, list(by_name))
    after = waits_for(nodes, names, groups)
    by_name = {name: replace(op, after=after[name]) for name, op in by_name.items()}
    alike = structures(nodes, names, groups, by_name)
    return Graph(tuple(by_name.values()), groups, tuple(unsupported), modules, alike)


def _sort(products: list[Product], skeleton: nn.Module, samples: int) -> tuple[list[Op], list[Unsupported]]:
    """Sort products into ops, in execution order, and what cannot be quantized."""
    by_module: dict[str, list[Product]] = {}
    for product in products:
        by_module.setdefault(product.module, []).append(product)
    aliases = Counter(id(m) for _, m in skeleton.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    ops, unsupported = [], []
    for name, calls in by_module.items():
        first = calls[0]
        module = skeleton.get_submodule(name)
        if first.module_class not in QUANTIZABLE or first.kind in OTHER_PRODUCTS:
            reason = _reason(first)
        elif aliases[id(module)] > 1:
            reason = "one module under several names: INC would swap only the first of them"
        else:
            weight = getattr(module, "weight", None)
            ops.append(
                Op(
                    name,
                    QUANTIZABLE[first.module_class],
                    sum(product.gemm.macs for product in calls) // samples,
                    0 if weight is None else weight.numel(),
                    len(calls),
                    tied=weight is not None and owners[id(weight)] > 1,
                    gemms=tuple(product.gemm for product in calls),
                )
            )
            continue
        unsupported.append(Unsupported(name, first.kind, reason))
    return ops, unsupported


def _reason(product: Product) -> str:
    if product.kind == "scaled_dot_product_attention":
        return f"{product.module_class} runs a fused attention kernel: its products are not modules"
    if product.kind in FUSED_EXPERTS:
        return f"{product.module_class} runs a fused expert kernel: its weights are not modules"
    known = ", ".join(QUANTIZABLE)
    return f"INC swaps modules of class {known}; this product stands in a {product.module_class}"


def _groups(nodes: list[Node], names: Mapping[Node, str], ops: list[str]) -> tuple[tuple[str, ...], ...]:
    """Partition the graph; groups that share an op (a module called twice) become one."""
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
