"""The experts of stock transformers models as linear modules.

INC swaps modules, but transformers 5 keeps the experts of a layer in 3-D parameters and multiplies them
in one kernel. This file gives such a layer children `<number>.gate_proj`, `.up_proj` and `.down_proj`
(their names in checkpoints), and runs each expert on the tokens that were sent to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import children_of, parameters_of
from inc_mp_plugin.model.expert import Expert, routed
from inc_mp_plugin.model.expert_stacks import BIASES, WEIGHTS, may_be_fused, order_of, sent_rows, why_not


def fused_experts(model: nn.Module) -> dict[str, str]:
    """Find the modules with fused experts, by name, and why they cannot be exposed: "" if they can."""
    reasons: dict[type, str | None] = {}
    layers = {}
    for name, module in model.named_modules():
        kind = type(module)
        if is_exposed(module):
            continue
        if kind not in reasons:
            reasons[kind] = why_not(module) if may_be_fused(module) else None
        reason = reasons[kind]
        if reason is not None:
            layers[name] = reason
    return layers


def is_exposed(module: nn.Module) -> bool:
    """Tell if the experts of a module are its children."""
    return isinstance(children_of(module).get("0"), Expert)


def exposed_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the layers, by name, whose experts are their children and hold nothing but linear modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if is_exposed(module)
        and all(type(p) is nn.Linear for expert in experts_of(module).values() for p in expert.children())
    }


def layer_of(op: str) -> str:
    """Return the name of the layer that an expert's op would belong to.

    Example:
        >>> layer_of("model.layers.0.mlp.experts.3.up_proj")
        'model.layers.0.mlp.experts'
    """
    return op.rpartition(".")[0].rpartition(".")[0]


def experts_of(module: nn.Module) -> dict[str, Expert]:
    """Return the experts of a module by number.

    They are its children, or new ones whose weights are views of its parameters.
    """
    children = {name: child for name, child in module.named_children() if isinstance(child, Expert)}
    if children:
        return children
    order = order_of(module)
    if isinstance(order, str):
        return {}
    return {str(number): expert for number, expert in enumerate(order.experts(module))}


@contextmanager
def exposed_experts(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Expose fused experts inside a `with`, without a copy of a weight; the model leaves as it came.

    Yields:
        Names of the modules whose experts were exposed.
    """
    names = show_experts(model)
    try:
        yield names
    finally:
        hide_experts(model, names)


def show_experts(model: nn.Module) -> tuple[str, ...]:
    """Expose fused experts until `hide_experts`: their weights are views of the fused parameters.

    Returns:
        Names of the modules whose experts were exposed; none if they were there already.
    """
    modules = _to_expose(model)
    for module in modules.values():
        _attach(module, experts_of(module))
    return tuple(modules)


def hide_experts(model: nn.Module, names: Iterable[str]) -> None:
    """Take the experts off again that `show_experts` exposed in these modules."""
    for name in names:
        _detach(model.get_submodule(name))


def expose_experts(model: nn.Module) -> tuple[str, ...]:
    """Expose fused experts for good: for a model that is about to be quantized.

    Every linear module gets a weight of its own and the fused parameters go, so that a weight can be
    freed alone; one layer at a time is held twice.

    Returns:
        Names of the modules whose experts were exposed; none if they were there already for good.
    """
    views = {name: m for name, m in model.named_modules() if is_exposed(m) and WEIGHTS[0] in parameters_of(m)}
    modules = {**views, **_to_expose(model)}
    for module in modules.values():
        experts = experts_of(module)
        for expert in experts.values():
            for projection in expert.children():
                for name, parameter in list(projection.named_parameters()):
                    own = parameter.detach().clone(memory_format=torch.contiguous_format)
                    projection.register_parameter(name, nn.Parameter(own, requires_grad=False))
        _attach(module, experts)
        for name in (*WEIGHTS, *BIASES):
            if name in parameters_of(module):
                delattr(module, name)
    return tuple(modules)


def _to_expose(model: nn.Module) -> dict[str, nn.Module]:
    return {name: model.get_submodule(name) for name, reason in fused_experts(model).items() if not reason}


def _attach(module: nn.Module, experts: Mapping[str, Expert]) -> None:
    children_of(module).update(experts)
    module.forward = MethodType(_run_exposed, module)


def _detach(module: nn.Module) -> None:
    vars(module).pop("forward", None)
    for name in [name for name, child in module.named_children() if isinstance(child, Expert)]:
        delattr(module, name)


def _run_exposed(self: nn.Module, hidden_states: Tensor, *routing: Tensor) -> Tensor:
    """Run a module with exposed experts: its forward becomes this function."""
    experts: Mapping[str, Any] = children_of(self)
    sent = sent_rows(self, len(experts_of(self)), (hidden_states, *routing))
    return routed(hidden_states, sent, lambda number, rows: experts[str(number)](rows))
