"""Products of an exported graph, sorted into ops and those that cannot be quantized."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from torch.fx import Node

from inc_mp_plugin.core.graph import QUANTIZABLE, Op, Unsupported
from inc_mp_plugin.graph.expert_node import Call, ExpertLayer, expert_ops
from inc_mp_plugin.graph.export import export
from inc_mp_plugin.graph.products import EXPERTS, GROUPED, OTHER_PRODUCTS, Product, find_products
from inc_mp_plugin.graph.structure import waits_for
from inc_mp_plugin.graph.weight_dtypes import modules_cast_to

_UNKNOWN = ExpertLayer({}, "its experts are in no list `experts` of equal modules")


@dataclass(slots=True)
class SortedProducts:
    """The products of a graph, sorted into ops and those that cannot be quantized.

    `names` maps the nodes of ops to the names of the ops. A layer of experts is a single op among `ops`, with
    the name of its module; `layers` holds the ops that it stands for, and `experts` the products of each kind
    of expert.
    """

    ops: list[Op] = field(default_factory=list)
    unsupported: list[Unsupported] = field(default_factory=list)
    names: dict[Node, str] = field(default_factory=dict)
    layers: dict[str, tuple[Op, ...]] = field(default_factory=dict)
    experts: dict[str, SortedProducts] = field(default_factory=dict)

    def add(self, op: Op, calls: Iterable[Product]) -> None:
        """Add an op and its nodes."""
        self.ops.append(op)
        self.names.update(dict.fromkeys((product.node for product in calls), op.name))


_CAST_TO = "the model's code casts its input to the dtype of its weight: in FP8, without a scale"


def sort_products(
    products: Iterable[Product],
    skeleton: nn.Module,
    samples: int,
    *,
    layers: Mapping[str, ExpertLayer],
    routers: Mapping[str, int],
) -> SortedProducts:
    """Sort products into ops, in execution order, and those that cannot be quantized.

    Args:
        products: all products of one graph, in execution order.
        skeleton: the model that was exported.
        samples: number of samples in the batch.
        layers: layers of experts of the model, by the module that their nodes stand in.
        routers: number of outputs that make a child of this module a router.
    """
    result = SortedProducts()
    by_module: dict[tuple[str, bool], list[Product]] = {}
    for product in products:
        by_module.setdefault((product.module, product.kind == EXPERTS), []).append(product)
    modules = dict(skeleton.named_modules(remove_duplicate=False))
    aliases = Counter(map(id, modules.values()))
    owners = Counter(id(p) for _, p in skeleton.named_parameters(remove_duplicate=False))
    cast_to = modules_cast_to(skeleton)
    for (name, routed), calls in by_module.items():
        if routed:
            _add_layer(result, layers.get(name, _UNKNOWN), calls, samples)
            continue
        module = modules.get(name)
        if module is None:  # such as a module in two places that is reached through a slice of a list
            result.unsupported.append(Unsupported(name, calls[0].kind, "no module has this name"))
            continue
        reason = _reason(calls[0], routers, aliases[id(module)]) or (_CAST_TO if name in cast_to else "")
        if reason:
            result.unsupported.append(Unsupported(name, calls[0].kind, reason))
        else:
            result.add(_op(calls, module, samples, owners), calls)
    return result


def _op(calls: list[Product], module: nn.Module, samples: int, owners: Mapping[int, int]) -> Op:
    weight = getattr(module, "weight", None)
    return Op(
        calls[0].module,
        QUANTIZABLE[calls[0].module_class],
        sum(product.gemm.macs for product in calls) // samples,
        0 if weight is None else weight.numel(),
        len(calls),
        tied=weight is not None and owners[id(weight)] > 1,
        gemms=tuple(product.gemm for product in calls),
    )


def _reason(product: Product, routers: Mapping[str, int], aliases: int) -> str:
    """Tell why a product is no op; return "" if it is one."""
    parent = product.module.rpartition(".")[0]
    if parent in routers and product.gemm.columns == routers[parent]:
        return "router: it decides which experts run, so it always stays in the base format"
    if product.kind == "scaled_dot_product_attention":
        return f"{product.module_class} runs a fused attention kernel: its products are not modules"
    if product.kind in GROUPED:
        return f"{product.module_class} runs a fused expert kernel: its weights are not modules"
    if product.module_class not in QUANTIZABLE or product.kind in OTHER_PRODUCTS:
        classes = ", ".join(QUANTIZABLE)
        return f"INC swaps modules of class {classes}; this product stands in a {product.module_class}"
    if aliases > 1:
        return "one module under several names: INC would swap only the first of them"
    return ""


def _add_layer(result: SortedProducts, layer: ExpertLayer, calls: list[Product], samples: int) -> None:
    """Add a layer of experts; each kind of expert is captured once."""
    name = calls[0].module
    if layer.reason:
        result.unsupported.append(Unsupported(name, EXPERTS, f"{calls[0].module_class}: {layer.reason}"))
        return
    runs = [Call.of(product.node) for product in calls]
    (first, expert), *_ = layer.experts.items()
    key = f"{type(expert)} {expert} {runs[0].like.dtype}"
    if key not in result.experts:
        result.experts[key] = _capture_expert(expert, runs[0])
    products = result.experts[key]
    result.unsupported += [replace(u, name=f"{first}.{u.name}".rstrip(".")) for u in products.unsupported]
    inner = expert_ops(layer, products.ops, runs, samples)
    result.layers[name] = inner
    macs, weights = sum(op.macs for op in inner), sum(op.weight_elements for op in inner)
    gemms = tuple(gemm for op in inner[: len(products.ops)] for gemm in op.gemms)
    result.add(Op(name, EXPERTS, macs, weights, len(calls), gemms=gemms), calls)


def _capture_expert(expert: nn.Module, run: Call) -> SortedProducts:
    """Capture the ops of one expert on one token, with the ops that each op waits for."""
    token = torch.empty(1, run.like.shape[-1], dtype=run.like.dtype, device="meta")
    nodes = export(expert, (token,))
    products = sort_products(find_products(nodes), expert, 1, layers={}, routers={})
    after = waits_for(nodes, products.names, [[op.name for op in products.ops]])
    products.ops = [replace(op, after=after[op.name]) for op in products.ops]
    return products
