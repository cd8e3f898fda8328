"""A model in which some ops round their inputs and weight, as in a lower format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from typing import Any, Protocol

from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import map_tensors, parameters_of
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.model.weights import are_here
from inc_mp_plugin.sensitivity.packed import Packed


class Errors(Protocol):
    """Rounding errors of a tensor's elements in some formats, or the errors' root mean square."""

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats."""

    @property
    def maxabs(self) -> Mapping[tuple[str, int], Tensor]:
        """Largest magnitudes over all calibration batches, by op and index of the input, if known."""

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Return the error of an input of an op, in the value's shape.

        Args:
            op: its name.
            index: of the input, from 0.
            value: of the input.
            format_name: one of `formats`.
        """

    def of_weight(self, weight: Tensor, format_name: str, rows: slice = slice(None)) -> Tensor:
        """Return the error of rows of a weight, in their shape.

        Args:
            weight: the whole of it.
            format_name: one of `formats`.
            rows: of its first axis.
        """


class Rounder(Protocol):
    """An object that rounds tensors: `Rounding` to FP8, or `Cast`."""

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Round an input of an op.

        Args:
            op: its name.
            index: of the input, from 0.
            value: of the input.
            format_name: to round to.
        """

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Round a weight to a format."""


class Packer(Rounder, Protocol):
    """A rounder of weights that are to be kept."""

    def packed(self, weight: Tensor, format_name: str) -> Packed:
        """Round a weight to a format, in the bytes of the format."""


@contextmanager
def rounded(
    model: nn.Module, rounder: Rounder, formats: Mapping[str, str], *, as_used: bool = False
) -> Iterator[None]:
    """Round the inputs and weights of some ops inside a `with`; then undo it.

    Hooks round the inputs. A weight is replaced by a parameter that holds the rounded weight.

    Args:
        model: leaves as it came.
        rounder: rounds a tensor.
        formats: of the ops that are rounded, by their names.
        as_used: round a weight each time its op runs, and drop it then, so that one rounded weight is there
            at a time; else all are there. Weights that are elsewhere between passes are always rounded so.
    """
    modules = {op: module_of(model, op) for op in formats}
    as_used = as_used or not are_here(model)
    replaced: dict[nn.Module, Tensor] = {}

    def put(op: str) -> None:
        module = modules[op]
        weight = replaced.get(module, parameters_of(module).get("weight"))
        if weight is not None:
            replaced[module] = weight
            rounded_weight = nn.Parameter(rounder.weight(weight, formats[op]), requires_grad=False)
            parameters_of(module)["weight"] = rounded_weight

    def take(op: str, *_: Any) -> None:
        if modules[op] in replaced:
            parameters_of(modules[op])["weight"] = replaced.pop(modules[op])

    def before(op: str, *arguments: Any) -> Any:
        if as_used:
            put(op)
        return _round_inputs(rounder, formats, op, *arguments)

    try:
        for op in () if as_used else modules:
            put(op)
        with watching(modules, before=before, after=take if as_used else None):
            yield
    finally:
        for op in modules:
            take(op)


def _round_inputs(rounder: Rounder, formats: Mapping[str, str], op: str, *call: Any) -> Any:
    index = count()

    def rounded_input(value: Tensor) -> Tensor:
        if not value.is_floating_point() or not value.numel():
            return value
        return rounder.input(op, next(index), value, formats[op])

    return map_tensors(rounded_input, call)
