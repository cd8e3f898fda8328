"""INC's scale methods: the divisors of tensors before a cast to FP8. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from inc_mp_plugin.core.errors import InputError, unknown

if TYPE_CHECKING:
    from torch import Tensor

# Largest finite value of a format; Gaudi 2 has an E4M3 of its own.
_FULL_SCALE = {"fp8_e4m3": 448.0, "fp8_e5m2": 57344.0}
_FULL_SCALE_GAUDI2 = {**_FULL_SCALE, "fp8_e4m3": 240.0}

# Scales that the hardware applies for nothing: smallest, largest, and the step of their exponents.
_HARDWARE = {"gaudi2": (2.0**-8, 2.0**4, 4), "gaudi3": (2.0**-55, 2.0**7, 1)}

DEVICES = ("cpu", *_HARDWARE)

# INC's floor of the scale of an output channel: the smallest normal number of BF16.
_CHANNEL_FLOOR = 2.0**-126

# Parts of an op with a scale of their own, from the largest magnitude of the part: an input, the weight, and
# an output channel.
INPUT, WEIGHT, CHANNEL = PARTS = ("input", "weight", "channel")

_LARGEST = {"fp32": 3.4028235e38, "bf16": 3.3895314e38, "fp16": 65504.0}


@dataclass(frozen=True, slots=True)
class ScaleMethod:
    """A way to choose scales, under its name in INC's `scale_method`.

    `activation` and `weight` say how maxabs / (full scale x backoff) is rounded: "none", not at all; "pow2",
    up to a power of two; "hw", up to a scale of the hardware. Two more values take no maxabs at all: "unit"
    is 1, and "hw_single" is the largest scale of the hardware.
    """

    name: str
    activation: str
    weight: str
    per_channel_weight: bool = False
    activation_backoff: float = 0.25
    weight_backoff: float = 0.5

    @property
    def hardware(self) -> bool:
        """True if the method asks for the hardware's own scales."""
        return self.activation.startswith("hw") or self.weight.startswith("hw")


SCALE_METHODS = {
    method.name: method
    for method in (
        ScaleMethod("maxabs_arbitrary", "none", "none"),
        ScaleMethod("maxabs_pow2", "pow2", "pow2"),
        ScaleMethod("maxabs_hw", "hw", "hw"),
        ScaleMethod("act_maxabs_pow2_weights_pcs_maxabs_pow2", "pow2", "pow2", per_channel_weight=True),
        ScaleMethod("act_maxabs_hw_weights_pcs_maxabs_pow2", "hw", "pow2", per_channel_weight=True),
        ScaleMethod("unit_scale", "unit", "unit"),
        ScaleMethod("hw_aligned_single_scale", "hw_single", "hw_single"),
    )
}


class Scale(NamedTuple):
    """Divisor of a tensor before the cast to FP8, and factor after the cast.

    A tensor is divided in the dtype of the divisor, FP32 of INC's; or, where an `inverse` is given,
    multiplied by it in FP32. The factor is in FP32. INC keeps the inverse of a scale and inverts the inverse
    once more, so that divisor and factor may differ in the last bits. All have no dimension, or the tensor's
    number of dimensions, with one entry per output channel of a weight or token of an activation.
    """

    divisor: Tensor
    factor: Tensor
    inverse: Tensor | None = None

    def of_rows(self, rows: slice) -> Scale:
        """Return the scale of some rows of a weight.

        Args:
            rows: of its first axis.
        """
        if not self.divisor.dim():
            return self
        return Scale(self.divisor[rows], self.factor[rows])


@dataclass(frozen=True, slots=True)
class Scales:
    """A scale method on a device: "cpu" (INC's quantize-dequantize), "gaudi2" or "gaudi3".

    Raises:
        InputError: an unknown method or device, or hardware scales on a device without such scales.

    Example:
        >>> Scales("maxabs_hw", "gaudi2").full_scale("fp8_e4m3")
        240.0
    """

    method: str
    device: str

    def __post_init__(self) -> None:
        """Check the names."""
        if self.method not in SCALE_METHODS:
            raise InputError(unknown("scale method", self.method, SCALE_METHODS))
        if self.device not in DEVICES:
            raise InputError(unknown("device for scales", self.device, DEVICES))
        if SCALE_METHODS[self.method].hardware and self.device not in _HARDWARE:
            software = sorted(name for name, method in SCALE_METHODS.items() if not method.hardware)
            message = (
                f"scale method {self.method!r} takes the scales of Gaudi hardware, which device "
                f"{self.device!r} does not have; give device {' or '.join(_HARDWARE)}, or one of the methods "
                f"{', '.join(software)}"
            )
            raise InputError(message)

    @property
    def per_token(self) -> bool:
        """True if an activation has a scale for each token, which needs no calibration; not in INC."""
        return False

    def full_scale(self, format_name: str) -> float:
        """Return the largest finite value of an FP8 format on the device.

        Raises:
            InputError: not an FP8 format.
        """
        table = _FULL_SCALE_GAUDI2 if self.device == "gaudi2" else _FULL_SCALE
        if format_name not in table:
            raise InputError(unknown("FP8 format", format_name, table))
        return table[format_name]

    def doubtful(self, part: str, format_name: str, dtype: str) -> float:
        """Return the maxabs from which on a part certainly has a scale; 0 if any maxabs will do.

        The inverse of a scale must be finite in the dtype in which INC computes the scale. The rounding of a
        scale changes the scale by less than a factor of two.

        Args:
            part: one of PARTS.
            format_name: an FP8 format.
            dtype: in which INC computes the scale: "fp32", "bf16" or "fp16".
        """
        rounding, limit = self._limit(part, format_name)
        return 2.0 * limit / _LARGEST[dtype] if rounding in ("none", "pow2") else 0.0

    def usable(self, part: str, maxabs: Tensor, format_name: str) -> Tensor:
        """Tell where INC has a scale for this maxabs: neither 0, nor so small that its inverse is infinite.

        Without a scale, INC divides by 0, or by a number that became 0 when INC inverted the scale twice. All
        values then turn into NaN, or into the largest value of the format.

        Args:
            part: one of PARTS.
            maxabs: of any shape, in the dtype in which INC computes the scale.
            format_name: an FP8 format.

        Returns:
            True or False for each maxabs, in its shape.
        """
        rounding, limit = self._limit(part, format_name)
        scale = self._rounded(maxabs / limit, rounding)
        good: Tensor = (scale > 0) & scale.reciprocal().isfinite()
        return good.expand(maxabs.shape)

    def _limit(self, part: str, format_name: str) -> tuple[str, float]:
        """Give the rounding of a part's scale ("unit" without a scale), and the divisor of its maxabs."""
        method = SCALE_METHODS[self.method]
        if part == INPUT:
            return method.activation, self.full_scale(format_name) * method.activation_backoff
        mine = method.per_channel_weight == (part == CHANNEL)
        return method.weight if mine else "unit", self.full_scale(format_name) * method.weight_backoff

    def of_input(self, maxabs: Tensor, format_name: str) -> Scale:
        """Return the scale of an activation, a single number.

        Args:
            maxabs: of all its elements over the calibration batches, without dimension, in the
                model's own dtype, in which INC computes the scale.
            format_name: an FP8 format.
        """
        rounding, limit = self._limit(INPUT, format_name)
        scale = _not_zero(self._rounded(maxabs / limit, rounding))
        # INC inverts twice in the tensor's dtype, and dequantizes activations with the result, too.
        twice = _inverse_of(scale.reciprocal(), scale)
        return Scale(twice, twice)

    def of_weight(self, weight: Tensor, format_name: str) -> Scale:
        """Return the scale of a weight, or of each of the weight's output channels (its first axis)."""
        from inc_mp_plugin.scales.nearest import largest_magnitude

        method = SCALE_METHODS[self.method]
        limit = self.full_scale(format_name) * method.weight_backoff
        if not method.per_channel_weight:
            scale = self._rounded(largest_magnitude(weight) / limit, method.weight)
        else:
            unrounded = (largest_magnitude(weight.flatten(1), dim=1) / limit).clamp(min=_CHANNEL_FLOOR)
            scale = self._rounded(unrounded, method.weight).view(-1, *[1] * (weight.dim() - 1))
        scale = _not_zero(scale)
        # INC makes the inverse a Python float here, before the second inversion.
        return Scale(_inverse_of(scale.reciprocal().double(), scale), scale.float())

    def _rounded(self, scale: Tensor, rounding: str) -> Tensor:
        """Round a scale by INC's operations in INC's order: another order rounds differently in BF16."""
        if rounding == "none":
            return scale
        if rounding == "unit":
            return scale.new_ones(())
        if rounding == "hw_single":
            return scale.new_full((), _HARDWARE[self.device][1])
        power = scale.log2().ceil().exp2()
        if rounding == "pow2":
            return power
        smallest, largest, step = _HARDWARE[self.device]
        aligned: Tensor = 2.0 ** ((power.log2() / step).ceil() * step)
        return aligned.clamp(smallest, largest)


def _not_zero(scale: Tensor) -> Tensor:
    """Return a scale of 1 for zeros, which are exact under any scale; INC would divide 0 by 0."""
    return scale.masked_fill(scale == 0, 1.0)


def _inverse_of(inverse: Tensor, scale: Tensor) -> Tensor:
    """Return 1 / inverse in FP32; the scale itself where the inverse overflows, and INC would divide by 0."""
    return inverse.reciprocal().float().where(inverse.isfinite(), scale.float())
