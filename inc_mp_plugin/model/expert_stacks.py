"""The fused parameters of a layer of experts, in any of the orders that models store them in."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import give_parameters
from inc_mp_plugin.libraries.transformers import asks_for_experts, gate_of
from inc_mp_plugin.model.expert import Expert, Sent, routed

WEIGHTS = ("gate_up_proj", "down_proj")
BIASES = tuple(f"{name}_bias" for name in WEIGHTS)
_INNER = 4  # of the experts that a module is tried with


@dataclass(frozen=True, slots=True)
class Order:
    """The order of fused parameters.

    Weights have the shapes (experts, 2 x inner, hidden) and (experts, hidden, inner), or are `transposed`.
    The outputs of gate and up take turns in the first if they are `interleaved`; else the gate's come first.
    """

    transposed: bool
    interleaved: bool
    biased: bool

    def experts(self, module: nn.Module) -> Iterator[Expert]:
        """Make the experts of a module, whose weights are views of its parameters."""
        names = (*WEIGHTS, *BIASES) if self.biased else WEIGHTS
        stacks = [module.get_parameter(name).detach() for name in names]
        gate = gate_of(module)
        for gate_up, down, *biases in zip(*stacks, strict=True):
            if self.transposed:
                gate_up, down = gate_up.T, down.T  # noqa: PLW2901
            bias, last = biases or (None, None)
            weights = self._gate_and_up(gate_up)
            first = (None, None) if bias is None else self._gate_and_up(bias)
            pairs = [*zip(weights, first, strict=True), (down, last)]
            yield Expert(pairs, gate, interleaved=self.interleaved)

    def _gate_and_up(self, both: Tensor) -> tuple[Tensor, Tensor]:
        half = len(both) // 2
        return (both[0::2], both[1::2]) if self.interleaved else (both[:half], both[half:])


def takes_places(kind: type[nn.Module]) -> bool:
    """Tell whether a module of experts takes one row per token and expert, instead of numbers of experts."""
    return len(inspect.signature(inspect.unwrap(kind.forward)).parameters) == 2


def may_be_fused(module: nn.Module) -> bool:
    """Tell whether a module may hold fused experts, by its code or its parameters.

    The code asks transformers' experts interface which function to run; or the module takes hidden states
    alone, and computes what experts of such parameters compute.
    """
    kind = type(module)
    if asks_for_experts(kind):
        return True
    names = {name for name, _ in module.named_parameters(recurse=False)}
    return names.issuperset(WEIGHTS) and takes_places(kind) and not why_not(module)


def why_not(module: nn.Module) -> str:
    """Tell why a module's fused experts cannot be exposed; return "" if they can.

    They can if the module's own eager function computes what `Expert` does: tried on a few numbers.
    """
    order = order_of(module)
    if isinstance(order, str):
        return order
    return "" if _eager_is_same(module, order) else "its experts do not compute down(gate(x), up(x))"


def sent_rows(module: nn.Module, experts: int, arguments: tuple[Tensor, ...]) -> Sent:
    """Sort the rows of a call of a module of experts.

    Args:
        module: of the experts.
        experts: their number.
        arguments: of the call: hidden states, and unless their places tell, numbers and weights of experts.
    """
    if takes_places(type(module)):
        return Sent.by_place(arguments[0], experts)
    _, numbers, weights = arguments
    return Sent.by_number(numbers, weights, range(experts))


def order_of(module: nn.Module) -> Order | str:
    """Return the order of a module's fused parameters; if their names or shapes fit none, the reason."""
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters(recurse=False)}
    if shapes.keys() not in (set(WEIGHTS), {*WEIGHTS, *BIASES}):
        names = ", ".join(sorted(shapes))
        return f"its experts have {names} instead of {' and '.join(WEIGHTS)}, and biases of both or none"
    interleaved = _interleaves(module)
    for transposed in (False, True) if len(shapes["down_proj"]) == 3 else ():
        order = Order(transposed, interleaved, len(shapes) > 2)
        number, *sides = shapes["down_proj"]
        hidden, inner = reversed(sides) if transposed else sides
        if shapes == _shapes(order, number, hidden, inner):
            return order
    return f"the shapes of its experts' parameters do not fit each other: {shapes}"


def _shapes(order: Order, number: int, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    sides = [(2 * inner, hidden), (hidden, inner)]
    if order.transposed:
        sides = [(columns, rows) for rows, columns in sides]
    shapes: dict[str, tuple[int, ...]] = {
        name: (number, *side) for name, side in zip(WEIGHTS, sides, strict=True)
    }
    if order.biased:
        shapes |= dict(zip(BIASES, ((number, 2 * inner), (number, hidden)), strict=True))
    return shapes


def _interleaves(module: nn.Module) -> bool:
    """Tell whether the first output of a module's gate depends on the second of its inputs."""
    both = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).repeat(2, 1)
    both[1, 1] = 0.5
    try:
        joined = gate_of(module)(both)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False  # the comparison with the module's own forward tells
    return bool(joined[0, 0] != joined[1, 0])


def _eager_is_same(module: nn.Module, order: Order) -> bool:
    """Compare a module's own eager forward with ours on random numbers and small weights."""
    # Its code may read the hidden size from the module; the number of experts and the inner size are small.
    hidden_size = module.get_parameter("down_proj").shape[2 if order.transposed else 1]
    generator = torch.Generator().manual_seed(0)
    probe = copy.copy(module)
    shapes = _shapes(order, 2, hidden_size, _INNER)
    numbers = {n: torch.randn(s, generator=generator) / s[-1] ** 0.5 for n, s in shapes.items()}
    give_parameters(probe, {name: nn.Parameter(value) for name, value in numbers.items()})
    arguments = _arguments(module, hidden_size, generator)
    try:
        experts: Mapping[int, Expert] = dict(enumerate(order.experts(probe)))
        sent = sent_rows(module, 2, arguments)
        ours = routed(arguments[0], sent, lambda number, rows: experts[number](rows))
        theirs: Any = inspect.unwrap(type(module).forward)(probe, *arguments)
    except (RuntimeError, TypeError, AttributeError, IndexError):
        return False
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def _arguments(module: nn.Module, hidden_size: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Make arguments for two experts: three tokens, and if the places tell no more, both of each."""
    if takes_places(type(module)):
        hidden = torch.randn(6, hidden_size, generator=generator)
        hidden[1] = 0.0
        return (hidden,)
    hidden, weights = torch.randn(3, hidden_size, generator=generator), torch.rand(3, 2, generator=generator)
    return hidden, torch.tensor([[0, 1], [1, 0], [0, 1]]), weights
