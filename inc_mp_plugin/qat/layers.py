"""Models whose ops run in integer formats of their own, with learned steps."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import get_format
from inc_mp_plugin.libraries.torch import convolve
from inc_mp_plugin.model.batches import call
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.qat.lsq import Quantizer, code_range, initial_step

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

STATISTICS, SCALED = "statistics", "scaled"


class QuantizedOp(nn.Module):
    """A linear op or a convolution whose input and weight are rounded to one integer format.

    The bias stays as it is: it is added to sums that have more bits than either factor.
    """

    def __init__(self, op: nn.Linear | nn.Conv2d, input: Quantizer, weight: Quantizer) -> None:
        """Wrap an op, whose weight and bias are trained further."""
        super().__init__()
        self.op, self.input_quantizer, self.weight_quantizer = op, input, weight

    @property
    def format(self) -> str:
        """Name of the format of input and weight."""
        return self.weight_quantizer.format

    @property
    def weight(self) -> Tensor:
        """The rounded weight, which the input is multiplied by."""
        rounded: Tensor = self.weight_quantizer(self.op.weight)
        return rounded

    def forward(self, value: Tensor) -> Tensor:
        """Round the input and the weight, then apply the op."""
        rounded = self.input_quantizer(value, samples=value.shape[0])
        if isinstance(self.op, nn.Conv2d):
            return convolve(self.op, rounded, self.weight)
        return nn.functional.linear(rounded, self.weight, self.op.bias)


@dataclass(slots=True)
class _InputStatistics:
    """Sum of magnitudes, number and least value of the inputs of one op."""

    total: Tensor
    count: int = 0
    least: float = 0.0


def quantized(
    model: nn.Module, formats: Mapping[str, str], batches: Sequence[Batch], *, per_channel: bool = False
) -> nn.Module:
    """Return a copy of a model in which ops are rounded, under their old names.

    Steps start at 2 mean|v| / sqrt(Qp): of the weight, and of the inputs over the batches. An input that
    is never negative there (it follows a ReLU) has codes without a sign.

    Args:
        model: a model, which leaves as it came.
        formats: integer format of each op that is to be rounded, an `nn.Linear` or `nn.Conv2d`, by its name.
        batches: calibration batches, which run in evaluation mode.
        per_channel: if each output channel of a weight has a step of its own.

    Raises:
        InputError: a name of no such op, a format that is no integer, or an op that no batch reached.
    """
    copied = copy.deepcopy(model)
    for name in formats:
        if not isinstance(module_of(copied, name), nn.Linear | nn.Conv2d):
            kind = type(module_of(copied, name)).__name__
            message = f"{name!r} is of class {kind}; only linear ops and convolutions can be rounded"
            raise InputError(message)
    inputs = _observe(copied, tuple(formats), batches)
    for name, format_name in formats.items():
        op: Any = module_of(copied, name)
        weight = _weight_quantizer(op.weight, format_name, per_channel=per_channel)
        copied.set_submodule(name, QuantizedOp(op, _input_quantizer(inputs[name], format_name), weight))
    return copied


def in_formats(
    model: nn.Module, formats: Mapping[str, str], batches: Sequence[Batch], *, steps: str = STATISTICS
) -> nn.Module:
    """Return a copy of a model of rounded ops in which some of them have other formats.

    Args:
        model: from `quantized`, trained or not; it leaves as it came.
        formats: new integer format of each op that changes, by its name; all others keep format and steps.
        batches: calibration batches, which run in evaluation mode.
        steps: start of the steps of these ops: "statistics" as in `quantized`; or "scaled", the old steps
            times 2 per bit less, so that the codes span the same range.

    Raises:
        InputError: a name of no rounded op, a format that is no integer, or an unknown `steps`.
    """
    if steps not in (STATISTICS, SCALED):
        message = f"steps is {steps!r}; it must be {STATISTICS!r} or {SCALED!r}"
        raise InputError(message)
    copied = copy.deepcopy(model)
    ops = rounded_ops(copied)
    for name in formats:
        if name not in ops:
            message = f"{name!r} is no rounded op of this model; the rounded ops are {', '.join(ops)}"
            raise InputError(message)
    changed = {name: format_name for name, format_name in formats.items() if ops[name].format != format_name}
    inputs = _observe(copied, tuple(changed), batches) if steps == STATISTICS else {}
    for name, format_name in changed.items():
        op = ops[name]
        if steps == STATISTICS:
            per_channel = bool(op.weight_quantizer.step.dim())
            op.input_quantizer = _input_quantizer(inputs[name], format_name)
            op.weight_quantizer = _weight_quantizer(op.op.weight, format_name, per_channel=per_channel)
        else:
            op.input_quantizer = _scaled(op.input_quantizer, format_name)
            op.weight_quantizer = _scaled(op.weight_quantizer, format_name)
    return copied


def rounded_ops(model: nn.Module) -> dict[str, QuantizedOp]:
    """Return the rounded ops of a model by their names, in the order of its modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedOp)}


def weight_codes(model: nn.Module) -> dict[str, Tensor]:
    """Return the integer codes of the weights of all rounded ops, by op."""
    return {name: op.weight_quantizer.codes(op.op.weight) for name, op in rounded_ops(model).items()}


def as_plain(model: nn.Module) -> nn.Module:
    """Return a copy that computes the same with plain modules.

    Weights are stored rounded, and a hook rounds the inputs before the op is called, so that further hooks on
    an op see the factors of its product. Gradients are those of the rounded network at the rounded values.
    """
    copied = copy.deepcopy(model)
    for name, rounded in rounded_ops(copied).items():
        with torch.no_grad():
            rounded.op.weight.copy_(rounded.weight)
        rounded.op.register_forward_pre_hook(partial(_round_input, rounded.input_quantizer))
        copied.set_submodule(name, rounded.op)
    return copied


def _round_input(quantizer: Quantizer, module: nn.Module, args: tuple[Tensor]) -> Tensor:
    del module
    rounded: Tensor = quantizer(args[0], samples=args[0].shape[0])
    return rounded


def _observe(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, _InputStatistics]:
    """Run the batches through a copy, and collect statistics of the inputs of ops."""
    observed = copy.deepcopy(model).eval()
    inputs = {name: _InputStatistics(torch.zeros((), dtype=torch.float64)) for name in names}
    for name, statistics in inputs.items():
        module_of(observed, name).register_forward_pre_hook(partial(_add, statistics))
    with torch.no_grad():
        for batch in batches:
            call(observed, batch)
    missed = [name for name, statistics in inputs.items() if not statistics.count]
    if missed:
        message = (
            f"no calibration batch reached op {missed[0]!r}, so its input has no step; give batches that do"
        )
        raise InputError(message)
    return inputs


def _add(statistics: _InputStatistics, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    del module
    statistics.total += args[0].abs().double().sum().cpu()
    statistics.count += args[0].numel()
    statistics.least = min(statistics.least, float(args[0].min()))


def _input_quantizer(statistics: _InputStatistics, format_name: str) -> Quantizer:
    signed = statistics.least < 0
    mean = (statistics.total / statistics.count).float()
    return Quantizer(format_name, initial_step(mean, code_range(format_name, signed=signed)), signed=signed)


def _weight_quantizer(weight: Tensor, format_name: str, *, per_channel: bool) -> Quantizer:
    magnitude = weight.detach().abs()
    mean = magnitude.flatten(1).mean(dim=1) if per_channel else magnitude.mean()
    return Quantizer(format_name, initial_step(mean, code_range(format_name, signed=True)), signed=True)


def _scaled(old: Quantizer, format_name: str) -> Quantizer:
    fewer = get_format(old.format).bits - get_format(format_name).bits
    return Quantizer(format_name, old.step.detach() * 2.0**fewer, signed=old.signed)
