"""Published peaks of accelerators: the one table that modelled times rest on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import Accelerator


@dataclass(frozen=True, slots=True)
class Peaks:
    """Peaks of one accelerator.

    `flops` are dense matrix peaks in floating-point operations per second (a MAC is two of them), by format;
    `reached` are the rates of the best matrix product that was measured; `bandwidth` is the peak of the
    memory, in bytes per second. With `vector_engines`, casts run beside matrix products.
    """

    flops: Mapping[str, float]
    reached: Mapping[str, float]
    bandwidth: float
    vector_engines: bool


def _fp8(flops: float) -> dict[str, float]:
    return {"fp8_e4m3": flops, "fp8_e5m2": flops}


_H100 = {"fp32": 66.9e12, "fp16": 989.4e12, "bf16": 989.4e12, **_fp8(1978.9e12)}
_CPU = {"fp32": 128e9, "bf16": 256e9}

# Peaks and bandwidths. gaudi2: 432 TFLOPS BF16, 865 FP8, 2.46 TB/s (Hot Chips 2024 slides; arXiv 2503.09975).
# gaudi3: 1835 TFLOPS in both, so a MAC takes no less time in FP8 there; 3.7 TB/s (Gaudi 3 white paper).
# h100: SXM, without sparsity: 66.9 FP32, 989.4 BF16 and FP16, 1978.9 FP8; 3.35 TB/s (H100 data sheet).
# cpu: nominal, one core at 2 GHz with two 512-bit units and AVX-512 BF16; a plan depends on the ratio alone.
# Reached on Gaudi: the "maximum achievable matmul FLOPS" tables of S. Bekman's Machine Learning Engineering
# (14336x15360x2048 and 6144x11264x5120 on Gaudi 2, 16384x4096x768 and 16640x1536x3072 on Gaudi 3).
# Elsewhere the peak itself counts.
ACCELERATORS: Mapping[Accelerator, Peaks] = {
    "gaudi2": Peaks(
        {"bf16": 432e12, **_fp8(865e12)}, {"bf16": 418.7e12, **_fp8(826.5e12)}, 2.46e12, vector_engines=True
    ),
    "gaudi3": Peaks(
        {"bf16": 1835e12, **_fp8(1835e12)}, {"bf16": 1243e12, **_fp8(1289.5e12)}, 3.7e12, vector_engines=True
    ),
    "h100": Peaks(_H100, _H100, 3.35e12, vector_engines=False),
    "cpu": Peaks(_CPU, _CPU, 25e9, vector_engines=False),
}


def peak(device: Accelerator, format_name: str) -> float:
    """Return the dense matrix peak of a device in a format, in floating-point operations per second.

    Raises:
        InputError: the device is unknown, or has no peak for the format.
    """
    if device not in ACCELERATORS:
        raise InputError(unknown("device", device, ACCELERATORS))
    peaks = ACCELERATORS[device].flops
    if format_name not in peaks:
        message = (
            f"no peak is known for {format_name} on {device}; known there: {', '.join(peaks)}. "
            "The base format is the model's dtype"
        )
        raise InputError(message)
    return peaks[format_name]
