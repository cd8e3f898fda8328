"""The true rounding error q of an op's inputs and weight, under the scales that INC would use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError, PluginError
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.libraries.torch import leaves
from inc_mp_plugin.model.batches import batch_size, told_nan
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.losses import check_labels, sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.scales.methods import Scale, Scales

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction

    MaxAbs = dict[tuple[str, int], Tensor]

CASTS = frozenset({"bf16", "fp16"})  # formats that need no scale


def quantize(value: Tensor, scale: Scale, format_name: str, full_scale: float) -> Tensor:
    """Divide by the scale, clamp to the full scale and cast to FP8, as `quantize_dequantize` does first."""
    return (value.float() / scale.divisor).clamp(-full_scale, full_scale).to(dtype_of(format_name))


def quantize_dequantize(value: Tensor, scale: Scale, format_name: str, full_scale: float) -> Tensor:
    """Round to FP8 and back, bit for bit as INC does on a CPU.

    In FP32: divide by the scale, clamp to the full scale, cast, multiply by the scale; then return to
    the dtype of the value.

    Args:
        value: of any shape.
        scale: broadcasts to it.
        format_name: an FP8 format.
        full_scale: its largest value on the device.
    """
    low = quantize(value, scale, format_name, full_scale)
    return (low.float() * scale.factor).to(value.dtype)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding errors q of a model's ops, one tensor at a time.

    `maxabs` holds, by op and index of the input, the largest magnitude over the calibration batches.
    """

    scales: Scales
    formats: tuple[str, ...]
    maxabs: Mapping[tuple[str, int], Tensor]

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Error q of input `index` of an op (0 and 1 of a bgemm), in FP32 and the value's shape."""
        return self.input(op, index, value, format_name).float() - value.float()

    def of_weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Error q of a weight, in FP32 and its shape."""
        return self.weight(weight, format_name).float() - weight.float()

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Input `index` of an op, rounded.

        Raises:
            PluginError: the calibration batches never gave the op this input.
        """
        if (op, index) not in self.maxabs:
            message = (
                f"input {index} of op {op!r} was not seen when the maxabs was taken, but it is now; "
                "the model's forward must not depend on whether gradients are on"
            )
            raise PluginError(message)
        scale = self.scales.of_input(self.maxabs[op, index], format_name)
        return quantize_dequantize(value, scale, format_name, self.scales.full_scale(format_name))

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """A weight, rounded."""
        scale = self.scales.of_weight(weight, format_name)
        return quantize_dequantize(weight, scale, format_name, self.scales.full_scale(format_name))


@dataclass(frozen=True, slots=True)
class Cast:
    """Rounds to BF16 or FP16, which need no scale; `maxabs` tells which ops ran, as in `Rounding`."""

    maxabs: Mapping[tuple[str, int], Tensor]

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Input of an op, rounded."""
        del op, index
        return self.weight(value, format_name)

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """A weight, rounded."""
        return weight.to(dtype_of(format_name)).to(weight.dtype)


def rounder_to(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None,
    scales: Scales | None,
    formats: Sequence[str],
) -> Rounding | Cast:
    """What rounds to these formats, all of them FP8 under scales, or BF16 and FP16; see `observe_rounding`.

    Raises:
        InputError: other formats, or FP8 without scales.
    """
    if formats and set(formats) <= CASTS:
        return Cast(observe_maxabs(model, graph, batches, loss_fn))
    found = observe_rounding(model, graph, batches, loss_fn, scales, formats)
    if found is None:
        message = "no format to round to was given; give FP8 formats with scales, or bf16 or fp16"
        raise InputError(message)
    return found


def observe_rounding(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None,
    scales: Scales | None,
    formats: Sequence[str],
) -> Rounding | None:
    """Run the batches once without gradients for the maxabs of every op's inputs.

    Args:
        model: runs in evaluation mode and in its own precision; it leaves as it came.
        graph: from `capture`.
        batches: all calibration batches.
        loss_fn: as in `measure_sensitivity`.
        scales: None if rounding errors are not wanted.
        formats: FP8 formats whose rounding errors are wanted.

    Returns:
        What the taps ask for rounding errors; None without scales.

    Raises:
        InputError: scales without formats or the other way round, or a format that is not FP8.
        NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
    """
    if (scales is None) != (not formats):
        message = (
            f"scales {scales} with formats {list(formats)}: the rounding error is measured of FP8 formats "
            "under scales; give both or neither"
        )
        raise InputError(message)
    if scales is None:
        return None
    for format_name in formats:
        scales.full_scale(format_name)  # refuses what is not FP8
    return Rounding(scales, tuple(formats), observe_maxabs(model, graph, batches, loss_fn))


def floating_inputs(args: Any, kwargs: Any) -> list[Tensor]:
    """The inputs of a call that are rounded, in the order in which their index counts."""
    given = leaves((args, kwargs))
    return [leaf for leaf in given if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def observe_maxabs(
    model: nn.Module, graph: Graph, batches: Iterable[Batch], loss_fn: LossFunction | None
) -> MaxAbs:
    """Largest magnitude of every op's inputs over all batches, {(op, index of the input): maxabs}.

    Raises:
        NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
    """
    maxabs: MaxAbs = {}

    def look(op: str, args: Any, kwargs: Any) -> None:
        for index, value in enumerate(floating_inputs(args, kwargs)):
            if value.numel():  # an expert may get no token
                largest = value.detach().abs().max()
                before = maxabs.get((op, index), largest)
                maxabs[op, index] = torch.maximum(before, largest)

    with as_measured(model), torch.no_grad():
        modules = {op.name: module_of(model, op.name) for op in graph.ops}
        first, told = 1, ""
        with watching(modules, before=look):
            for batch in batches:
                if loss_fn is None:
                    check_labels(batch, first)
                sample_losses(model, batch, loss_fn)
                told = told or told_nan(batch, first)
                first += batch_size(batch)
        maxabs = _of_all_ranks(maxabs)
        try:
            _check_finite(modules, maxabs)
        except NonFiniteError as error:
            message = f"{error}{told}"
            raise NonFiniteError(message) from error
    return maxabs


def _of_all_ranks(maxabs: MaxAbs) -> MaxAbs:
    """The largest over the processes, each of which saw batches of its own."""
    if ranks.size() == 1:
        return maxabs
    # BF16 has no counterpart in numpy; FP32 holds it exactly.
    mine = {f"{index} {op}": value.float().cpu().numpy() for (op, index), value in maxabs.items()}
    largest: MaxAbs = {}
    for part in ranks.exchange_arrays(mine):
        for name, array in part.items():
            index, _, op = name.partition(" ")
            value, key = torch.from_numpy(array), (op, int(index))
            largest[key] = torch.maximum(largest.get(key, value), value)
    like = next(iter(maxabs.values()), torch.zeros(()))
    return {key: value.to(maxabs.get(key, like)) for key, value in largest.items()}


def _check_finite(modules: Mapping[str, nn.Module], maxabs: MaxAbs) -> None:
    """Name the op where the first NaN or infinity appears: a scale would spread it silently."""
    broken = {op for (op, _), largest in maxabs.items() if not largest.isfinite()}
    for op, module in modules.items():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and not weight.abs().max().isfinite():
            message = f"NaN or infinity in the weight of op {op!r}"
            raise NonFiniteError(message)
        if op in broken:
            message = f"NaN or infinity in the input of op {op!r}"
            raise NonFiniteError(message)
