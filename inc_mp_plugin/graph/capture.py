"""Capture a model's data-flow graph with torch.export, on the meta device."""

from __future__ import annotations

import copy
import gc
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx import config as fx_config

from inc_mp_plugin.attention import exposed_bgemms
from inc_mp_plugin.batches import arguments, batch_size, map_tensors
from inc_mp_plugin.errors import CaptureError
from inc_mp_plugin.graph.partition import partition
from inc_mp_plugin.plan import FUSED_EXPERTS, Graph, Op, Unsupported

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch

# Classes that INC swaps for FP8 ones, by class name as INC does it, and the kind of op of each.
QUANTIZABLE = {"Linear": "linear", "FalconLinear": "linear", "Conv2d": "conv2d", "Matmul": "bgemm"}

# ATen products, and the operand whose last axis is summed over.
_PRODUCTS = {"linear": 0, "matmul": 0, "mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
_CONVOLUTIONS = {"conv1d", "conv2d", "conv3d", "convolution"}
_NO_TRACES = "do_not_emit_stack_traces"  # a setting that older versions of torch do not have
_OTHER_PRODUCTS = {"scaled_dot_product_attention", "einsum"} | FUSED_EXPERTS


@dataclass(frozen=True, slots=True)
class _Product:
    """A matrix product or convolution met in the exported graph, and the module it stands in."""

    node: Node
    kind: str
    module: str
    module_class: str

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the whole batch."""
        if self.kind in _CONVOLUTIONS:
            inner = math.prod(self._shape(1)[1:])
        else:
            inner = self._shape(_PRODUCTS[self.kind])[-1]
        return int(math.prod(self.node.meta["val"].shape) * inner)

    def _shape(self, argument: int) -> tuple[int, ...]:
        value = self.node.args[argument]
        return tuple(value.meta["val"].shape) if isinstance(value, Node) else ()


def capture(model: nn.Module, example_inputs: Batch) -> Graph:
    """Capture the ops of a model, their groups, and what cannot be quantized.

    The model is copied without its weights and exported on the meta device, so neither memory nor
    time depends on their size; the model itself is not touched. The attention products of stock
    transformers models become the ops `matmul_qk` and `matmul_av`.

    Args:
        model: any module that torch.export can trace.
        example_inputs: one batch; its shapes decide the MACs, which are counted per sample.

    Returns:
        Ops in execution order, their groups, and every product that cannot be quantized, with why.

    Raises:
        CaptureError: torch.export cannot trace the model, or it holds no quantizable op.
    """
    skeleton = _without_weights(model).eval()
    inputs = map_tensors(example_inputs, lambda t: t.to("meta"))
    with exposed_bgemms(skeleton):
        nodes = _export(skeleton, inputs)
        modules = {name: type(m).__name__ for name, m in skeleton.named_modules() if name}
        products = list(_products(nodes))
        ops, unsupported = _sort(products, skeleton, batch_size(example_inputs))
    if not ops:
        reasons = "; ".join(f"{u.name}: {u.reason}" for u in unsupported[:3]) or "no product at all"
        message = f"nothing in {type(model).__name__} can be quantized ({reasons})"
        raise CaptureError(message)
    groups = _groups(nodes, products, [op.name for op in ops])
    return Graph(tuple(ops), groups, tuple(unsupported), modules)


def _without_weights(model: nn.Module) -> nn.Module:
    """Deep-copy a model with every tensor replaced by a meta tensor; shared ones stay shared."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        for tensor in [*module._parameters.values(), *module._buffers.values()]:
            if tensor is not None and id(tensor) not in memo:
                meta = torch.empty_like(tensor, device="meta", requires_grad=False)
                is_parameter = isinstance(tensor, nn.Parameter)
                memo[id(tensor)] = nn.Parameter(meta, False) if is_parameter else meta
        for value in vars(module).values():
            if isinstance(value, Tensor):
                memo[id(value)] = torch.empty_like(value, device="meta")
    return copy.deepcopy(model, memo)


def _export(skeleton: nn.Module, inputs: Batch) -> list[Node]:
    args, kwargs = arguments(skeleton, inputs)
    try:
        with _without_waste():
            program = torch.export.export(skeleton, args, kwargs, strict=False)
    # Any error of the model's own code may surface here; it is kept as the cause.
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        message = (
            f"torch.export cannot trace {type(skeleton).__name__}: {first_line}. If its forward "
            "pass branches on values, as a Python loop over chosen experts does, replace that by "
            "tensor operations (in transformers, experts_implementation='batched_mm')"
        )
        raise CaptureError(message) from error
    return list(program.graph.nodes)


@contextmanager
def _without_waste() -> Iterator[None]:
    """Leave out what export does for compilers: half of its time on a hundred layers.

    That is stack traces of every node, Python code of every intermediate graph, and looking for
    garbage among a million objects that are all alive.
    """
    from torch.fx._lazy_graph_module import _use_lazy_graph_module

    traces, collecting = getattr(fx_config, _NO_TRACES, False), gc.isenabled()
    gc.disable()
    setattr(fx_config, _NO_TRACES, True)
    try:
        with _use_lazy_graph_module(True):
            yield
    finally:
        setattr(fx_config, _NO_TRACES, traces)
        if collecting:
            gc.enable()


def _products(nodes: list[Node]) -> Iterator[_Product]:
    known = _PRODUCTS.keys() | _CONVOLUTIONS | _OTHER_PRODUCTS
    for node in nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        kind = node.target._schema.name.split("::")[-1]
        stack = list(node.meta.get("nn_module_stack", {}).values())
        if kind in known and stack:
            path, kind_of_module = stack[-1]
            yield _Product(node, kind, path.split("@")[0], str(kind_of_module).rsplit(".", 1)[-1])


def _sort(products: list[_Product], skeleton: nn.Module, samples: int) -> tuple[list[Op], list[Unsupported]]:
    """Sort products into ops, in execution order, and what cannot be quantized."""
    by_module: dict[str, list[_Product]] = {}
    for product in products:
        by_module.setdefault(product.module, []).append(product)
    aliases = Counter(id(m) for _, m in skeleton.named_modules(remove_duplicate=False))
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    ops, unsupported = [], []
    for name, calls in by_module.items():
        first = calls[0]
        module = skeleton.get_submodule(name)
        if first.module_class not in QUANTIZABLE or first.kind in _OTHER_PRODUCTS:
            reason = _reason(first)
        elif aliases[id(module)] > 1:
            reason = "one module under several names: INC would swap only the first of them"
        else:
            weight = getattr(module, "weight", None)
            ops.append(
                Op(
                    name,
                    QUANTIZABLE[first.module_class],
                    sum(product.macs for product in calls) // samples,
                    0 if weight is None else weight.numel(),
                    len(calls),
                    tied=weight is not None and owners[id(weight)] > 1,
                )
            )
            continue
        unsupported.append(Unsupported(name, first.kind, reason))
    return ops, unsupported


def _reason(product: _Product) -> str:
    if product.kind == "scaled_dot_product_attention":
        return f"{product.module_class} runs a fused attention kernel: its products are not modules"
    if product.kind in FUSED_EXPERTS:
        return f"{product.module_class} runs a fused expert kernel: its weights are not modules"
    known = ", ".join(QUANTIZABLE)
    return f"INC swaps modules of class {known}; this product stands in a {product.module_class}"


def _groups(nodes: list[Node], products: list[_Product], ops: list[str]) -> tuple[tuple[str, ...], ...]:
    """Partition the graph; groups that share an op (a module called twice) become one."""
    names = {product.node: product.module for product in products if product.module in set(ops)}
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
