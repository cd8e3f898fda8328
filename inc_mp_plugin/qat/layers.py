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
        """Take an op over; its weight and bias go on being trained."""
        super().__init__()
        self.op, self.input_quantizer, self.weight_quantizer = op, input, weight

    @property
    def format(self) -> str:
        """Name of the format of input and weight."""
        return self.weight_quantizer.format

    @property
    def weight(self) -> Tensor:
        """The weight as it is multiplied with: rounded."""
        rounded: Tensor = self.weight_quantizer(self.op.weight)
        return rounded

    def forward(self, value: Tensor) -> Tensor:
        """Round the input and the weight, then do what the op does."""
        rounded = self.input_quantizer(value, samples=value.shape[0])
        if isinstance(self.op, nn.Conv2d):
            return convolve(self.op, rounded, self.weight)
        return nn.functional.linear(rounded, self.weight, self.op.bias)


@dataclass(slots=True)
class _Seen:
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
        model: leaves as it came.
        formats: integer format of each op that is to be rounded, `nn.Linear` or `nn.Conv2d`.
        batches: calibration batches; evaluation mode.
        per_channel: one step per output channel of a weight rather than one per weight.

    Raises:
        InputError: a name that is no such op, a format that is no integer, or an op that no batch reached.
    """
    made = copy.deepcopy(model)
    for name in formats:
        if not isinstance(module_of(made, name), nn.Linear | nn.Conv2d):
            kind = type(module_of(made, name)).__name__
            message = f"{name!r} is of class {kind}; only linear ops and convolutions can be rounded"
            raise InputError(message)
    seen = _observe(made, tuple(formats), batches)
    for name, format_name in formats.items():
        op: Any = module_of(made, name)
        weight = _weight_quantizer(op.weight, format_name, per_channel=per_channel)
        made.set_submodule(name, QuantizedOp(op, _input_quantizer(seen[name], format_name), weight))
    return made


def in_formats(
    model: nn.Module, formats: Mapping[str, str], batches: Sequence[Batch], *, steps: str = STATISTICS
) -> nn.Module:
    """Return a copy of a model of rounded ops in which some of them have other formats.

    Args:
        model: from `quantized`, trained or not; it leaves as it came.
        formats: of the ops that change; the others keep format and steps.
        batches: calibration batches.
        steps: how the steps of those ops start: "statistics" as in `quantized`, or "scaled", the old
            ones times 2 per bit less, so that the codes span the same range.

    Raises:
        InputError: a name that is no rounded op, a format that is no integer, or an unknown `steps`.
    """
    if steps not in (STATISTICS, SCALED):
        message = f"steps is {steps!r}; it must be {STATISTICS!r} or {SCALED!r}"
        raise InputError(message)
    made = copy.deepcopy(model)
    ops = rounded_ops(made)
    for name in formats:
        if name not in ops:
            message = f"{name!r} is no rounded op of this model; they are {', '.join(ops)}"
            raise InputError(message)
    changed = {name: format_name for name, format_name in formats.items() if ops[name].format != format_name}
    seen = _observe(made, tuple(changed), batches) if steps == STATISTICS else {}
    for name, format_name in changed.items():
        one = ops[name]
        if steps == STATISTICS:
            one.input_quantizer = _input_quantizer(seen[name], format_name)
            per_channel = bool(one.weight_quantizer.step.dim())
            one.weight_quantizer = _weight_quantizer(one.op.weight, format_name, per_channel=per_channel)
        else:
            one.input_quantizer = _scaled(one.input_quantizer, format_name)
            one.weight_quantizer = _scaled(one.weight_quantizer, format_name)
    return made


def rounded_ops(model: nn.Module) -> dict[str, QuantizedOp]:
    """Return the rounded ops of a model by their names, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedOp)}


def weight_codes(model: nn.Module) -> dict[str, Tensor]:
    """Return the integer codes of the weights of all rounded ops, by op."""
    return {name: one.weight_quantizer.codes(one.op.weight) for name, one in rounded_ops(model).items()}


def as_plain(model: nn.Module) -> nn.Module:
    """Return a copy that computes the same with plain modules.

    Hooks on an op see what the op multiplies. Weights are stored rounded, inputs are rounded by a hook
    before the op is called; its gradients are those of the rounded network at the rounded values.
    """
    made = copy.deepcopy(model)
    for name, one in rounded_ops(made).items():
        with torch.no_grad():
            one.op.weight.copy_(one.weight)
        one.op.register_forward_pre_hook(partial(_round_input, one.input_quantizer))
        made.set_submodule(name, one.op)
    return made


def _round_input(quantizer: Quantizer, module: nn.Module, args: tuple[Tensor]) -> Tensor:
    del module
    rounded: Tensor = quantizer(args[0], samples=args[0].shape[0])
    return rounded


def _observe(model: nn.Module, names: Sequence[str], batches: Sequence[Batch]) -> dict[str, _Seen]:
    """Run the batches through a copy, and see what ops are given."""
    observed = copy.deepcopy(model).eval()
    seen = {name: _Seen(torch.zeros((), dtype=torch.float64)) for name in names}
    for name, one in seen.items():
        module_of(observed, name).register_forward_pre_hook(partial(_add, one))
    with torch.no_grad():
        for batch in batches:
            call(observed, batch)
    missed = [name for name, one in seen.items() if not one.count]
    if missed:
        message = f"no calibration batch reached op {missed[0]!r}, so its input has no step; give others"
        raise InputError(message)
    return seen


def _add(seen: _Seen, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    del module
    seen.total += args[0].abs().double().sum().cpu()
    seen.count += args[0].numel()
    seen.least = min(seen.least, float(args[0].min()))


def _input_quantizer(seen: _Seen, format_name: str) -> Quantizer:
    signed = seen.least < 0
    mean = (seen.total / seen.count).float()
    return Quantizer(format_name, initial_step(mean, code_range(format_name, signed=signed)), signed=signed)


def _weight_quantizer(weight: Tensor, format_name: str, *, per_channel: bool) -> Quantizer:
    magnitude = weight.detach().abs()
    mean = magnitude.flatten(1).mean(dim=1) if per_channel else magnitude.mean()
    return Quantizer(format_name, initial_step(mean, code_range(format_name, signed=True)), signed=True)


def _scaled(old: Quantizer, format_name: str) -> Quantizer:
    fewer = get_format(old.format).bits - get_format(format_name).bits
    return Quantizer(format_name, old.step.detach() * 2.0**fewer, signed=old.signed)
