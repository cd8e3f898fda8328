"""Which Gaudi the stand-in pretends to be."""

import os

VARIABLE = "HABANA_STUB_DEVICE"
# The largest float8_e4m3 value: Gaudi 2 keeps the top exponent for infinities, Gaudi 3 does not.
LARGEST_FP8 = {"gaudi2": 240.0, "gaudi3": 448.0}


def name() -> str | None:
    """The device: gaudi2, gaudi3, or None where no Gaudi is to be seen (then INC works for the CPU)."""
    value = os.environ.get(VARIABLE, "").lower()
    if value and value not in LARGEST_FP8:
        message = f"{VARIABLE}={value}: unknown; use one of {sorted(LARGEST_FP8)}, or unset it"
        raise ValueError(message)
    return value or None


def largest_fp8() -> float:
    """The largest magnitude that the device's float8_e4m3 holds."""
    return LARGEST_FP8[name() or "gaudi2"]
