"""A model some of whose ops round their inputs and weight, as they would in a lower format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import count
from typing import Any, Protocol

from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import map_tensors, parameters_of
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.modules import module_of


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
    modules = {op: module_of(model, op) for op in formats}
    weights = []
    try:
        for op, module in modules.items():
            weight = parameters_of(module).get("weight")
            if weight is not None:
                weights.append((module, weight))
                rounded = nn.Parameter(rounder.weight(weight, formats[op]), requires_grad=False)
                parameters_of(module)["weight"] = rounded
        with watching(modules, before=partial(_round_inputs, rounder, formats)):
            yield
    finally:
        for module, weight in weights:
            parameters_of(module)["weight"] = weight


def _round_inputs(rounder: Rounder, formats: Mapping[str, str], op: str, *call: Any) -> Any:
    index = count()

    def rounded_input(value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        return rounder.input(op, next(index), value, formats[op])

    return map_tensors(rounded_input, call)
