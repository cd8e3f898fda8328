"""The experts of stock transformers models as linear modules.

INC swaps modules, but transformers 5 keeps the experts of a layer in 3-D parameters and multiplies them
in one kernel. This file gives such a layer children `<number>.gate_proj`, `.up_proj` and `.down_proj`
(their names in checkpoints), and runs each expert on the tokens that were sent to it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import children_of, give_parameters, parameters_of
from inc_mp_plugin.libraries.transformers import asks_for_experts, gate_of

# The parameters of a layer: shapes (experts, 2 x inner, hidden) and (experts, hidden, inner).
_STACKS = ("gate_up_proj", "down_proj")


class Expert(nn.Module):
    """One expert, whose projections are linear modules."""

    def __init__(self, gate_up: Tensor, down: Tensor, apply_gate: Callable[[Tensor], Tensor]) -> None:
        """Take the weights, which are not copied, and the function that joins gate and up."""
        super().__init__()
        inner = down.shape[1]
        self.gate_proj = _linear(gate_up[:inner])
        self.up_proj = _linear(gate_up[inner:])
        self.down_proj = _linear(down)
        self.apply_gate = apply_gate

    def forward(self, hidden: Tensor) -> Tensor:
        """Map tokens, shape (rows, hidden), to their outputs."""
        both = torch.cat((self.gate_proj(hidden), self.up_proj(hidden)), dim=-1)
        output: Tensor = self.down_proj(self.apply_gate(both))
        return output


def routed(
    hidden: Tensor,
    numbers: Tensor,
    weights: Tensor,
    experts: Container[int],
    *,
    run: Callable[[int, Tensor], Tensor],
) -> Tensor:
    """Run every chosen expert on its own tokens and add up the weighted outputs.

    Args:
        hidden: tokens, shape (tokens, hidden).
        numbers: of each token's experts, shape (tokens, experts per token).
        weights: of their outputs, same shape.
        experts: numbers of those that are here; what is sent to others is left out.
        run: from an expert's number and its tokens, shape (rows, hidden), to their outputs.
    """
    output = torch.zeros_like(hidden)
    for number in torch.unique(numbers).tolist():
        if number in experts:
            token, place = torch.where(numbers == number)
            rows = run(number, hidden[token]) * weights[token, place, None]
            output.index_add_(0, token, rows.to(output.dtype))
    return output


def fused_experts(model: nn.Module) -> dict[str, str]:
    """Find the modules with fused experts, by name, and why they cannot be exposed: "" if they can.

    The forward of such a module asks transformers' experts interface which function to run. It can be
    exposed if its own eager function computes what `Expert` does: tried on a few numbers, so that
    biases, transposed weights and interleaved gates are left alone.
    """
    reasons: dict[type, str] = {}
    layers = {}
    for name, module in model.named_modules():
        kind = type(module)
        if asks_for_experts(kind) and not is_exposed(module):
            if kind not in reasons:
                reasons[kind] = _why_not(module)
            layers[name] = reasons[kind]
    return layers


def is_exposed(module: nn.Module) -> bool:
    """Tell if the experts of a module are its children."""
    return isinstance(children_of(module).get("0"), Expert)


def experts_of(module: nn.Module) -> dict[str, Expert]:
    """Return the experts of a module by number.

    They are its children, or new ones whose weights are views of its parameters.
    """
    children = {name: child for name, child in module.named_children() if isinstance(child, Expert)}
    if children:
        return children
    gate_up, down = (module.get_parameter(name).detach() for name in _STACKS)
    gate = gate_of(module)
    pairs = zip(gate_up, down, strict=True)
    return {str(number): Expert(*weights, gate) for number, weights in enumerate(pairs)}


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
    views = {name: m for name, m in model.named_modules() if is_exposed(m) and _STACKS[0] in parameters_of(m)}
    modules = {**views, **_to_expose(model)}
    for module in modules.values():
        experts = experts_of(module)
        for expert in experts.values():
            for projection in expert.children():
                own = projection.get_parameter("weight").clone()
                projection.register_parameter("weight", nn.Parameter(own, requires_grad=False))
        _attach(module, experts)
        for name in _STACKS:
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


def _run_exposed(
    self: nn.Module, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """Run a module with exposed experts: its forward becomes this function."""
    experts: Mapping[str, Any] = children_of(self)
    here = range(len(experts_of(self)))
    return routed(hidden_states, top_k_index, top_k_weights, here, run=lambda n, rows: experts[str(n)](rows))


def _linear(weight: Tensor) -> nn.Linear:
    # Without its constructor, whose random weight is not wanted: there may be twenty thousand of these.
    module = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(module)
    module.out_features, module.in_features = weight.shape
    module.weight = nn.Parameter(weight, requires_grad=False)
    module.register_parameter("bias", None)
    return module


def _why_not(module: nn.Module) -> str:
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    if shapes.keys() != set(_STACKS):
        return f"its experts have {', '.join(sorted(shapes))} instead of {' and '.join(_STACKS)} alone"
    number, hidden, inner = shapes["down_proj"]
    if shapes["gate_up_proj"] != (number, 2 * inner, hidden) or not getattr(module, "is_concatenated", True):
        return "the weights of its experts are transposed, or gate and up are interleaved"
    return "" if _eager_is_same(module) else "its experts do not compute down(gate(x), up(x))"


def _eager_is_same(module: nn.Module) -> bool:
    """Compare a module's own eager forward with ours on random numbers and small weights."""
    generator = torch.Generator().manual_seed(0)
    probe = copy.copy(module)
    shapes = zip(_STACKS, [(2, 8, 6), (2, 6, 4)], strict=True)
    give_parameters(probe, {n: nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes})
    hidden = torch.randn(3, 6, generator=generator)
    numbers = torch.tensor([[0, 1], [1, 0], [0, 1]])
    weights = torch.rand(3, 2, generator=generator)
    experts = experts_of(probe)
    try:
        ours = routed(hidden, numbers, weights, (0, 1), run=lambda n, rows: experts[str(n)](rows))
        theirs = inspect.unwrap(type(module).forward)(probe, hidden, numbers, weights)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)
