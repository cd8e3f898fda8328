"""The true rounding error q of an op's inputs and weight, under the scales of INC or of a server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError, PluginError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.libraries.torch import version_of
from inc_mp_plugin.scales.dtypes import dtype_of
from inc_mp_plugin.scales.methods import Scale, Scales
from inc_mp_plugin.scales.nearest import largest_magnitude, to_nearest
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.packed import Packed

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction

CASTS = frozenset({"bf16", "fp16"})  # formats that need no scale


def scaled(value: Tensor, scale: Scale, full_scale: float) -> Tensor:
    """Divide by the scale and clamp to the full scale: what is cast to FP8, in FP32 and fresh memory.

    Args:
        value: of any shape.
        scale: broadcasts to the value.
        full_scale: largest value of the format on the device.
    """
    if scale.inverse is not None:
        return (value.float() * scale.inverse).clamp_(-full_scale, full_scale)
    return (value.to(scale.divisor.dtype) / scale.divisor).float().clamp_(-full_scale, full_scale)


def quantize_dequantize(value: Tensor, scale: Scale, format_name: str, full_scale: float) -> Tensor:
    """Round to FP8 and back, to the same values as INC does on a CPU, or a server.

    Divide by the scale, clamp to the full scale, round, multiply by the scale. Then cast to the dtype of the
    value. The result shares no memory with the value.

    Args:
        value: of any shape.
        scale: broadcasts to the value.
        format_name: an FP8 format.
        full_scale: largest value of the format on the device.
    """
    nearest = to_nearest(scaled(value, scale, full_scale), format_name)
    return nearest.mul_(scale.factor).to(value.dtype)


@dataclass(frozen=True, slots=True)
class Rounding:
    """Rounding errors q of a model's ops, one tensor at a time.

    `maxabs` holds, by op and index of the input, the largest magnitude over the calibration batches. It may
    grow until a scale is asked for; where each token has a scale of its own, it is not needed.
    """

    scales: Scales
    formats: tuple[str, ...]
    maxabs: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    # A scale takes longer to compute than a small tensor to round. Ops that read one tensor ask for its error
    # one after the other.
    _scales: dict[tuple[str, int, str], Scale] = field(default_factory=dict, repr=False, compare=False)
    _last: dict[str, tuple[Tensor, int, Scale | None, Tensor]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _last_weight: dict[str, tuple[Tensor, int, Scale]] = field(
        default_factory=dict, repr=False, compare=False
    )

    @staticmethod
    def to(scales: Scales | None, formats: Sequence[str]) -> Rounding | None:
        """Round to formats, with maxabs yet to come; None without scales.

        Args:
            scales: of FP8; None if no rounding errors are to be measured.
            formats: FP8 formats whose rounding errors are to be measured.

        Raises:
            InputError: scales without formats or the other way round, or a format that is not FP8.
        """
        if (scales is None) != (not formats):
            message = (
                f"scales {scales} with formats {list(formats)}: a rounding error is measured in FP8 formats "
                "under scales; give both or neither"
            )
            raise InputError(message)
        if scales is None:
            return None
        for format_name in formats:
            scales.full_scale(format_name)  # refuses what is not FP8
        return Rounding(scales, tuple(formats))

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Return the error q of an input of an op, in FP32 and the value's shape; not to be changed.

        Args:
            op: its name.
            index: of the input; a bgemm has inputs 0 and 1.
            value: of the input.
            format_name: an FP8 format.
        """
        scale = None if self.scales.per_token else self._scale(op, index, value, format_name)
        last, version, its_scale, error = self._last.get(format_name, (None, 0, scale, value))
        changed = last is not value or version != version_of(value)
        if changed or _differ(its_scale, scale):
            error = self.input(op, index, value, format_name).float().sub_(value)
            self._last[format_name] = value, version_of(value), scale, error
        return error

    def of_weight(self, weight: Tensor, format_name: str, rows: slice = slice(None)) -> Tensor:
        """Return the error q of rows of a weight, in FP32 and their shape.

        Args:
            weight: the whole of it, from which the scale follows.
            format_name: an FP8 format.
            rows: of its first axis.
        """
        last, version, scale = self._last_weight.get(format_name, (None, 0, None))
        if last is not weight or version != version_of(weight) or scale is None:
            scale = self.scales.of_weight(weight, format_name)
            self._last_weight[format_name] = weight, version_of(weight), scale
        part, full_scale = weight[rows], self.scales.full_scale(format_name)
        error = quantize_dequantize(part, scale.of_rows(rows), format_name, full_scale)
        return error.float().sub_(part)

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Round an input of an op.

        Args:
            op: its name.
            index: of the input; a bgemm has inputs 0 and 1.
            value: of the input.
            format_name: an FP8 format.

        Raises:
            PluginError: the calibration batches never gave the op this input.
        """
        scale = self._scale(op, index, value, format_name)
        return quantize_dequantize(value, scale, format_name, self.scales.full_scale(format_name))

    def _scale(self, op: str, index: int, value: Tensor, format_name: str) -> Scale:
        if self.scales.per_token:
            return self.scales.of_input(largest_magnitude(value, dim=-1).unsqueeze(-1), format_name)
        if (op, index) not in self.maxabs:
            message = (
                f"input {index} of op {op!r} was not seen when the maxabs was taken, but it is now; "
                "the model's forward must not depend on whether gradients are on"
            )
            raise PluginError(message)
        key = (op, index, format_name)
        if key not in self._scales:
            self._scales[key] = self.scales.of_input(self.maxabs[op, index], format_name)
        return self._scales[key]

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Round a weight."""
        scale = self.scales.of_weight(weight, format_name)
        return quantize_dequantize(weight, scale, format_name, self.scales.full_scale(format_name))

    def packed(self, weight: Tensor, format_name: str) -> Packed:
        """Round a weight, to be kept as the bytes of FP8 and its scale."""
        scale = self.scales.of_weight(weight, format_name)
        nearest = to_nearest(scaled(weight, scale, self.scales.full_scale(format_name)), format_name)
        return Packed.of(nearest, format_name, scale.factor, weight.dtype)


def _differ(scale: Scale | None, other: Scale | None) -> bool:
    """Tell if two scales of whole tensors differ; None is the scale that follows from the tensor alone."""
    return scale is not None and other is not None and bool(scale.divisor != other.divisor)


@dataclass(frozen=True, slots=True)
class Cast:
    """A rounding to BF16 or FP16, which need no scale; `maxabs` holds the ops that ran, as in `Rounding`."""

    maxabs: Mapping[tuple[str, int], Tensor]

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Round an input of an op.

        Args:
            op: its name, which makes no difference.
            index: of the input, which makes no difference.
            value: of the input.
            format_name: "bf16" or "fp16".
        """
        del op, index
        return self.weight(value, format_name)

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Round a weight."""
        return weight.to(dtype_of(format_name)).to(weight.dtype)

    def packed(self, weight: Tensor, format_name: str) -> Packed:
        """Round a weight, to be kept in the format."""
        return Packed.of(weight, format_name, None, weight.dtype)


def observe_rounding(
    model: nn.Module,
    graph: Graph,
    batches: Iterable[Batch],
    loss_fn: LossFunction | None,
    *,
    scales: Scales | None,
    formats: Sequence[str],
) -> Rounding | None:
    """Run the batches once without gradients for the maxabs of every op's inputs.

    Args:
        model: runs in evaluation mode and in its own precision, and leaves as it came.
        graph: from `capture`.
        batches: all calibration batches.
        loss_fn: as in `measure_sensitivity`.
        scales: how INC scales to FP8; None if no rounding errors are to be measured.
        formats: FP8 formats whose rounding errors are to be measured.

    Returns:
        Rounding errors for the taps; None without scales.

    Raises:
        InputError: scales without formats or the other way round, or a format that is not FP8.
        NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
    """
    rounding = Rounding.to(scales, formats)
    if rounding is not None:
        rounding.maxabs.update(observe_maxabs(model, graph, batches, loss_fn))
    return rounding
