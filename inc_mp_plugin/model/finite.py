"""Ops whose outputs are not finite, found by running a model."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.model.hooks import watching

if TYPE_CHECKING:
    from torch import nn

    Look = Callable[[str, bool, bool], None]


def check_outputs(model: nn.Module, ops: Collection[str], run: Callable[[nn.Module], object]) -> None:
    """Refuse a converted model some of whose ops make NaN or infinity of finite inputs.

    Args:
        model: converted by INC.
        ops: names of its modules.
        run: runs the model on a batch.

    Raises:
        NonFiniteError: the text names the first such op, in the order of execution.
    """
    guilty = first_guilty(model, ops, run)
    if guilty is not None:
        message = (
            f"op {guilty!r} makes NaN or infinity of finite inputs in the converted model, which is of no "
            "use: its weight or its input in calibration may be zeros, or a value is out of the format's "
            "range; leave the op in the base format, or load the model anew and plan with the batches that "
            "it is converted with"
        )
        raise NonFiniteError(message)


def first_guilty(model: nn.Module, ops: Collection[str], run: Callable[[nn.Module], object]) -> str | None:
    """Find the first op, in the order of execution, that makes NaN or infinity of finite inputs.

    Args:
        model: with these ops as modules.
        ops: names of its modules.
        run: runs the model on a batch.

    Returns:
        Name of the op; None if there is none.
    """
    import torch

    guilty: list[str] = []

    def look(name: str, inputs: bool, outputs: bool) -> None:
        if inputs and not outputs:
            guilty.append(name)

    with torch.no_grad(), watched(model, ops, look):
        run(model)
    return next(iter(guilty), None)


@contextmanager
def watched(model: nn.Module, ops: Collection[str], look: Look) -> Iterator[None]:
    """Watch every call of these ops inside a `with`, and tell `look` of it.

    Args:
        model: with these ops as modules.
        ops: names of its modules.
        look: takes the name of the op, if all its inputs are finite, and if all its outputs are.
    """

    def report(op: str, args: Any, kwargs: Any, output: Any) -> None:
        look(op, _all_finite((args, kwargs)), _all_finite(output))

    with watching({op: model.get_submodule(op) for op in ops}, after=report):
        yield


def _all_finite(values: Any) -> bool:
    import torch

    from inc_mp_plugin.libraries.torch import leaves

    tensors = [value for value in leaves(values) if isinstance(value, torch.Tensor)]
    return all(bool(value.isfinite().all()) for value in tensors if value.is_floating_point())
