"""A model some of whose ops round their inputs and weight, as they would in a lower format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Protocol

from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import map_tensors, parameters_of
from inc_mp_plugin.model.modes import module_of


class Errors(Protocol):
    """What gives rounding errors, or their root mean square, of a tensor's elements in some formats."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats."""

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Error of input `index` of an op, in its shape."""

    def of_weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Error of a weight, in its shape."""


class Rounder(Protocol):
    """What rounds: `Rounding` to FP8, or `Cast`."""

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Input `index` of an op, rounded to a format."""

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """A weight, rounded to a format."""


@contextmanager
def rounded(model: nn.Module, rounder: Rounder, formats: Mapping[str, str]) -> Iterator[None]:
    """Round the inputs of these ops by hooks, and their weights in parameters of their own; then undo it.

    Args:
        model: leaves as it came.
        rounder: rounds a tensor.
        formats: of the ops that are rounded, by their names.
    """
    handles, weights = [], []
    try:
        for op, format_name in formats.items():
            module = module_of(model, op)
            hook = partial(_round_inputs, op, rounder, format_name)
            handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
            weight = parameters_of(module).get("weight")
            if weight is not None:
                weights.append((module, weight))
                rounded = nn.Parameter(rounder.weight(weight, format_name), requires_grad=False)
                parameters_of(module)["weight"] = rounded
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, weight in weights:
            parameters_of(module)["weight"] = weight


def _round_inputs(
    op: str, rounder: Rounder, format_name: str, module: nn.Module, args: Any, kwargs: Any
) -> Any:
    del module
    index = count()

    def one(value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        return rounder.input(op, next(index), value, format_name)

    return map_tensors(one, (args, kwargs))
