"""Numbers: what counts as one, and how one is shown that must not be too small."""

from __future__ import annotations

import math
from fractions import Fraction
from numbers import Real


def is_number(value: object) -> bool:
    """Tell if something is a finite real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def rounded_up(value: float | Fraction, digits: int = 5) -> str:
    """Round a number up to five digits, or as many as asked for, and write it.

    The number that is written is not below the given one.

    Example:
        >>> rounded_up(0.0012345678), rounded_up(0.0)
        ('0.0012346', '0')
    """
    if value == 0:
        return "0"
    step = type(value)(10) ** (math.floor(math.log10(value)) - digits + 1)
    return f"{float(math.ceil(value / step) * step):.{digits}g}"
