"""Kinds of ops that a device really runs in a lower format, so that their time can be measured."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import check_formats
from inc_mp_plugin.core.literals import OpKind, TimedDevice
from inc_mp_plugin.targets.cpu import CPU_BF16, lay_out
from inc_mp_plugin.targets.optimum_habana import OPTIMUM_HABANA
from inc_mp_plugin.targets.target import Target

CUDA_FP8 = "fp8_e4m3"
# Time is measured of the model as it is, on whatever device, not of a consumer's.
TIMED_ON_GAUDI = Target("gaudi", "hpu", lay_out, scale_methods=OPTIMUM_HABANA.scale_methods)


def timed_formats(formats: Sequence[str], device: TimedDevice) -> tuple[str, str]:
    """Return the base and the lower format of a measurement of time.

    Raises:
        InputError: not one base and one lower format, or the device does not run the lower one.
    """
    base, *lower = check_formats(formats)
    if len(lower) > 1:
        message = (
            f"formats {lower}: time is measured for one lower format at a time, because INC runs one per "
            "model; give a single one"
        )
        raise InputError(message)
    runnable_kinds(device, lower[0])
    return base, lower[0]


def runnable_kinds(device: TimedDevice, format_name: str) -> tuple[OpKind, ...]:
    """List the kinds of ops that a device runs in a lower format; the others stay in the base format.

    On CUDA these are linear layers alone: torch has no batched FP8 product for attention.

    Args:
        device: "cpu", "cuda" or "hpu".
        format_name: a format below the base.

    Raises:
        InputError: it runs none, or only emulates them.
    """
    if format_name in CPU_BF16.formats and device in {"cpu", "cuda"}:
        return CPU_BF16.kinds
    if device == "cpu":
        message = (
            f"a CPU only emulates {format_name} (it casts values and multiplies in the base format), which "
            "takes longer, not shorter, so its time is not measured; give formats: [bf16] on an FP32 model"
        )
        raise InputError(message)
    if device == "cuda" and format_name == CUDA_FP8:
        return ("linear",)
    if device == "hpu" and format_name in OPTIMUM_HABANA.formats:
        return OPTIMUM_HABANA.kinds
    message = f"{format_name} cannot be run on {device!r}, so its time cannot be measured there"
    raise InputError(message)
