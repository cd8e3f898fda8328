"""Which kinds of ops a device really runs in a lower format, so that their time can be measured."""

from __future__ import annotations

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.targets.cpu import CPU_BF16
from inc_mp_plugin.targets.optimum_habana import OPTIMUM_HABANA

CUDA_FP8 = "fp8_e4m3"


def runnable_kinds(device: str, low: str) -> tuple[str, ...]:
    """Kinds of ops that a device runs in a lower format; the others stay in the base format.

    On CUDA these are linear layers alone: torch has no batched FP8 product for attention.

    Args:
        device: "cpu", "cuda" or "hpu".
        low: a format below the base.

    Raises:
        InputError: it runs none, or only emulates them.
    """
    if low in CPU_BF16.formats and device in {"cpu", "cuda"}:
        return CPU_BF16.kinds
    if device == "cpu":
        message = (
            f"a CPU only emulates {low} (it casts values and multiplies in the base format), which takes "
            "longer, not shorter, so its time is not measured; give formats: [bf16] on an FP32 model"
        )
        raise InputError(message)
    if device == "cuda" and low == CUDA_FP8:
        return ("linear",)
    if device == "hpu" and low in OPTIMUM_HABANA.formats:
        return OPTIMUM_HABANA.kinds
    message = f"{low} cannot be run on {device!r}, so its time cannot be measured there"
    raise InputError(message)
