"""Layers of experts, made traceable: the experts of a token depend on values, which a trace does not have."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable
from functools import partial
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.graph.expert_node import ExpertLayer, emit, emit_places
from inc_mp_plugin.libraries.torch import children_of
from inc_mp_plugin.model.expert_kernels import KERNEL
from inc_mp_plugin.model.expert_stacks import takes_places
from inc_mp_plugin.model.experts import experts_of, fused_experts, is_exposed

# Names in code that looks up, by value, the tokens of an expert.
_LOOKUPS = {"where", "nonzero"}


class _OneForAll(nn.ModuleList):
    """A list whose first module stands for all: thousands of weights take most of an export's time."""

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        super().__init__([next(iter(modules))])

    def __getitem__(self, idx: int) -> Any:  # type: ignore[override]
        return children_of(self)["0"]


def emit_experts(skeleton: nn.Module) -> dict[str, ExpertLayer]:
    """Let every layer of experts put one node into the graph instead of running; for good.

    Three forms are known by their structure: fused parameters behind transformers' experts interface; lists
    of modules that Gaudi's kernel reads; and lists of modules that a Python loop runs, as in transformers 4.
    Any other layer is left as it is.

    Args:
        skeleton: a model without weights, which is used for nothing else afterwards.

    Returns:
        The layers, by the name of the module whose node stands for them.
    """
    reasons = fused_experts(skeleton)
    layers = {}
    for name, module in list(skeleton.named_modules()):
        if name in reasons or is_exposed(module):
            reason = reasons.get(name, "")
            experts = {} if reason else {f"{name}.{i}": e for i, e in experts_of(module).items()}
            layers[name] = ExpertLayer(experts, reason)
            module.forward = _emission(skeleton, name)
        elif _has_equal_experts(module):
            children = children_of(module.get_submodule("experts")).items()
            modules = {f"{name}.experts.{i}": e for i, e in children if e is not None}
            if _emit_from_list(module):
                layers[name] = ExpertLayer(modules)
    return layers


def _emission(skeleton: nn.Module, name: str) -> Callable[..., Tensor]:
    module = skeleton.get_submodule(name)
    if not takes_places(type(module)):
        return emit
    number = _fused_number(module)
    block = skeleton.get_submodule(name.rpartition(".")[0])
    return partial(emit_places, experts=number, each=getattr(block, "top_k", number))


def router_widths(model: nn.Module) -> dict[str, int]:
    """Count the experts, by the module that holds them: a router beside them has as many outputs."""
    fused = fused_experts(model)
    widths = {}
    for name, module in model.named_modules():
        if name in fused or is_exposed(module):
            widths[name.rpartition(".")[0]] = _fused_number(module)
        elif isinstance(children_of(module).get("experts"), nn.ModuleList):
            widths[name] = len(children_of(module.get_submodule("experts")))
    return widths


def _fused_number(module: nn.Module) -> int:
    children = sum(name.isdecimal() for name in children_of(module))
    return children or next((p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3), 0)


def _has_equal_experts(module: nn.Module) -> bool:
    experts = getattr(module, "experts", None)
    if not isinstance(experts, nn.ModuleList):
        return False
    kinds = {(type(expert), str(expert)) for expert in experts if expert is not None}
    return len(experts) > 1 and len(kinds) == 1


def _emit_from_list(block: Any) -> bool:
    """Make a block with a list of experts emit a node, if its form is known; return True if it is."""
    if _mentions(block, {KERNEL}):
        # The kernel is replaced, but the code that prepares its arguments still runs.
        block.experts = _OneForAll(expert for expert in block.experts if expert is not None)
        return True
    if callable(getattr(block, "moe", None)) and len(inspect.signature(block.moe).parameters) == 3:
        block.moe = emit
    elif (forward := _traceable_forward(block)) is not None:
        block.forward = forward
    else:
        return False
    block.experts = nn.ModuleList()
    return True


def _mentions(module: nn.Module, names: set[str]) -> bool:
    kinds = [kind for kind in type(module).__mro__ if kind is not nn.Module]
    functions = [f for kind in kinds for f in vars(kind).values() if isinstance(f, FunctionType)]
    return any(names & set(function.__code__.co_names) for function in functions)


def _traceable_forward(block: Any) -> Callable[[Tensor], Any] | None:
    """Make a forward with the data flow of a block that loops over its experts.

    The block must have one linear router and its `top_k`; it may have a shared expert, with or without a
    gate of one output. For any other block the result is None.
    """
    children = {n: c for n, c in block.named_children() if next(c.parameters(), None) is not None}
    number = len(children.pop("experts"))
    routers = [n for n, c in children.items() if isinstance(c, nn.Linear) and c.out_features == number]
    returned = _returned_values(type(block).forward)
    top_k = getattr(block, "top_k", None)
    if len(routers) != 1 or returned not in (1, 2) or top_k is None or not _mentions(block, _LOOKUPS):
        return None
    router = children.pop(routers[0])
    gates = [c for c in children.values() if isinstance(c, nn.Linear) and c.out_features == 1]
    shared = [c for c in children.values() if c not in gates]
    if len(shared) > 1 or len(gates) > len(shared):
        return None

    def forward(hidden_states: Tensor) -> Any:
        tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
        scores = router(tokens)
        output = emit(tokens, torch.topk(scores, top_k, dim=-1).indices)
        for expert in shared:
            added = expert(tokens)
            for gate in gates:
                added = torch.sigmoid(gate(tokens)) * added
            output = output + added
        output = output.reshape(hidden_states.shape)
        return output if returned == 1 else (output, scores)

    return forward


def _returned_values(function: Callable[..., Any]) -> int | None:
    """Count the values that a function returns, by its source; return None if that is not clear."""
    try:
        source = inspect.getsource(function)
    except OSError:
        return None
    nodes = ast.walk(ast.parse(textwrap.dedent(source)))
    values = [node.value for node in nodes if isinstance(node, ast.Return)]
    counts = {len(value.elts) if isinstance(value, ast.Tuple) else 1 for value in values}
    return counts.pop() if len(counts) == 1 else None
