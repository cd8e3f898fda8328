"""Number formats: bits per element, mantissa bits, and the noise factor alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import NoiseModel


@dataclass(frozen=True, slots=True)
class Format:
    """A number format; an integer, which has no mantissa, counts steps of a size that its tensor has.

    `torch_name` is the format's dtype in torch, and `inc_name` the value of `fp8_config` in INC's files;
    each is empty where there is none.
    """

    name: str
    bits: int
    mantissa_bits: int | None = None
    torch_name: str = ""
    inc_name: str = ""

    @property
    def bytes(self) -> float:
        """Bytes per element."""
        return self.bits / 8

    @property
    def is_integer(self) -> bool:
        """True if the format is an integer."""
        return self.mantissa_bits is None

    @property
    def is_fp8(self) -> bool:
        """True if the format is one of FP8."""
        return self.bits == 8 and not self.is_integer

    def is_coarser_than(self, other: Format) -> bool:
        """Tell if this format holds less of a number than the other one.

        The mantissa bits decide, or the bits where one of the two formats is an integer.
        """
        if self.mantissa_bits is None or other.mantissa_bits is None:
            return self.bits < other.bits
        return self.mantissa_bits < other.mantissa_bits


FORMATS = {
    number_format.name: number_format
    for number_format in (
        Format("fp32", 32, 23, "float32"),
        Format("bf16", 16, 7, "bfloat16"),
        Format("fp16", 16, 10, "float16"),
        Format("fp8_e4m3", 8, 3, "float8_e4m3fn", "E4M3"),
        Format("fp8_e5m2", 8, 2, "float8_e5m2", "E5M2"),
        Format("int8", 8),
        Format("int4", 4),
        Format("int2", 2),
    )
}

BASES = ("fp32", "bf16", "fp16")  # of a model's parameters


def get_format(name: str) -> Format:
    """Look a format up by its name.

    Raises:
        InputError: there is no format of that name.
    """
    if name not in FORMATS:
        raise InputError(unknown("format", name, FORMATS))
    return FORMATS[name]


# Models of the rounding noise: the paper's, one with log-uniform mantissas, and the measured error.
NOISES: tuple[NoiseModel, ...] = get_args(NoiseModel)

# E[1/x^2] of a mantissa x in [1, 2) with density 1 / (x ln 2).
_LOG_UNIFORM = 3.0 / (8.0 * math.log(2.0))


def alpha(name: str, noise: NoiseModel = "uniform") -> float:
    """Return the variance of the rounding noise of a format, relative to the square of the value.

    Writing z with m mantissa bits adds q = z 2^(-m) U with U uniform on [-1/2, 1/2] (eq. 16, 17),
    so E[q^2] = alpha z^2 with::

        alpha = 2^(-2m) / 12                                        (eq. 18)

    A value with mantissa x in [1, 2) has steps of 2^(-m) / x relative to itself, so eq. 18 is exact at
    x = 1 and too large elsewhere. With `noise="log_uniform"` the average over mantissas whose logarithm
    is uniform is taken: alpha E[1/x^2], E[1/x^2] = 3 / (8 ln 2) = 0.541.

    Raises:
        InputError: there is no format of that name, or it is an integer, whose steps are of one size.

    Example:
        >>> alpha("fp8_e4m3") == 2**-6 / 12
        True
        >>> round(alpha("fp8_e4m3", "log_uniform") / alpha("fp8_e4m3"), 3)
        0.541
    """
    bits = get_format(name).mantissa_bits
    if bits is None:
        message = (
            f"the noise of {name} is not relative to a value, as that of floating point is: its rounding "
            "error has to be measured (noise: measured)"
        )
        raise InputError(message)
    factor = _LOG_UNIFORM if noise == "log_uniform" else 1.0
    return factor * float(2.0 ** (-2 * bits) / 12.0)


def check_formats(names: Sequence[str]) -> tuple[str, ...]:
    """Check a base format and the lower ones that ops may take instead.

    Raises:
        InputError: an unknown or repeated format, none below the base, or one that is not coarser.
    """
    formats = [get_format(name) for name in names]
    if len(formats) < 2 or len(set(formats)) != len(formats):
        message = f"formats {list(names)}: give the base format and at least one other, each once"
        raise InputError(message)
    base = formats[0]
    for lower in formats[1:]:
        if not lower.is_coarser_than(base):
            message = (
                f"format {lower.name!r} is not coarser than the base format {base.name!r}; only formats of "
                "fewer mantissa bits, or integers of fewer bits, save anything"
            )
            raise InputError(message)
    return tuple(names)


def converted_format(base: str) -> str:
    """Return the base format of a model after INC has converted it to FP8.

    INC makes FP16 BF16, all through; any other base format stays.

    Example:
        >>> converted_format("fp16"), converted_format("fp32")
        ('bf16', 'fp32')
    """
    return "bf16" if base == "fp16" else base
