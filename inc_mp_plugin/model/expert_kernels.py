"""Gaudi's kernel for a layer of experts, and the linear modules whose weights optimum-habana gives it.

optimum-habana keeps every expert in linear modules, and never calls them: their weights go to
`torch.ops.hpu.mixture_of_experts`. Whoever wants to see these modules run has to stand in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inc_mp_plugin.libraries.torch import operator_name, viewed
from inc_mp_plugin.model.expert import Sent, routed

KERNEL = "mixture_of_experts"
_NAMES = {f"hpu.{KERNEL}", f"hpu.{KERNEL}.default"}
_ARGUMENTS = (
    "hidden_states",
    "expert_routing_table",
    "router_weights",
    *("w1", "w2", "w3"),  # the kernel's names: gate, up and down, one weight per expert
    "permuted_weights",
    "activation",
    "experts_min",
    "experts_max",
)

Arguments = Mapping[str, Any]


@contextmanager
def kernel_calls(stand_in: Callable[[Arguments], Tensor | None]) -> Iterator[None]:
    """Give the calls of the kernel to a function instead; where it returns None, the kernel runs.

    Calls with other arguments, such as scales of FP8 weights, are left to it. Without the kernel, on most
    machines, nothing is watched.

    Args:
        stand_in: from the kernel's arguments, by name, to its result.
    """
    if getattr(torch.ops.hpu, KERNEL, None) is None:
        yield
        return
    with _Watch(stand_in):
        yield


@contextmanager
def kernels_through_modules(model: nn.Module) -> Iterator[None]:
    """Run the linear modules of each expert on its own tokens, instead of the kernel that reads them."""
    owners: dict[int, nn.Linear] = {}

    def owner(weight: Tensor) -> nn.Linear | None:
        whole = viewed(weight)
        linear = owners.get(id(whole))
        if linear is None or linear.weight is not whole:  # weights may be replaced between two calls
            owners.update({id(m.weight): m for m in model.modules() if isinstance(m, nn.Linear)})
            linear = owners.get(id(whole))
        return linear if linear is not None and linear.bias is None else None

    def run(call: Arguments) -> Tensor | None:
        lists = [[owner(weight) for weight in call[name]] for name in ("w1", "w2", "w3")]
        experts: list[Any] = list(zip(*lists, strict=True))
        if not call["permuted_weights"] or any(None in expert for expert in experts):
            return None
        first, activation = call["experts_min"], getattr(nn.functional, call["activation"])

        def run_expert(number: int, rows: Tensor) -> Tensor:
            gate, up, down = experts[number - first]
            output: Tensor = down(activation(gate(rows)) * up(rows))
            return output

        here = range(first, call["experts_max"] + 1)
        tokens, numbers, weights = (call[name] for name in _ARGUMENTS[:3])
        return routed(tokens, Sent.by_number(numbers, weights, here), run_expert)

    with kernel_calls(run):
        yield


class _Watch(TorchFunctionMode):
    def __init__(self, stand_in: Callable[[Arguments], Tensor | None]) -> None:
        super().__init__()
        self._stand_in = stand_in

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if operator_name(func) in _NAMES:
            call = {**dict(zip(_ARGUMENTS, args, strict=False)), **kwargs}
            result = self._stand_in(call) if call.keys() == set(_ARGUMENTS) else None
            if result is not None:
                return result
        return func(*args, **kwargs)
