"""Theoretical time gain: MACs times the time that one of them saves (eq. 28)."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.errors import InputError, unknown
from inc_mp_plugin.formats import check_formats
from inc_mp_plugin.plan import Gains, Graph, GroupGains

# Dense matrix peak in floating-point operations per second; a MAC is two of them.
# gaudi2: 432 TFLOPS BF16, 865 FP8 (Hot Chips 2024 deck; arXiv 2503.09975).
# gaudi3: 1835 TFLOPS in both (Gaudi 3 white paper): a MAC takes no less time in FP8 there.
# h100: SXM, without sparsity: 989.4 BF16 and FP16, 1978.9 FP8, 66.9 FP32 (H100 data sheet).
PEAK_FLOPS = {
    "gaudi2": {"bf16": 432e12, "fp8_e4m3": 865e12, "fp8_e5m2": 865e12},
    "gaudi3": {"bf16": 1835e12, "fp8_e4m3": 1835e12, "fp8_e5m2": 1835e12},
    "h100": {
        "fp32": 66.9e12,
        "fp16": 989.4e12,
        "bf16": 989.4e12,
        "fp8_e4m3": 1978.9e12,
        "fp8_e5m2": 1978.9e12,
    },
}


def seconds_per_mac(device: str, format: str) -> float:
    """Time of one multiply-accumulate at the device's peak, in seconds.

    Raises:
        InputError: the device is unknown, or has no peak for the format.
    """
    if device not in PEAK_FLOPS:
        raise InputError(unknown("device", device, PEAK_FLOPS))
    peaks = PEAK_FLOPS[device]
    if format not in peaks:
        message = (
            f"no peak is known for {format} on {device}; known there: {', '.join(peaks)}. "
            "The base format is the model's dtype"
        )
        raise InputError(message)
    return 2.0 / peaks[format]


def mac_gains(graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3"), device: str = "gaudi2") -> Gains:
    """Price every op by its MACs, per sample.

    With M the MACs of an op and t_f the time of one MAC in format f::

        c(op, f) = M (t_base - t_f)                                 (eq. 28)

    It adds up over ops, so every op is a group of its own.

    Args:
        graph: from `capture`; MACs are those of its example inputs, per sample.
        formats: the base format, then the lower ones.
        device: a key of `PEAK_FLOPS`.

    Returns:
        Gains in seconds, modelled.

    Raises:
        InputError: an unknown device or format, or a format not below the base.
    """
    base, *lower = check_formats(formats)
    saved = {f: seconds_per_mac(device, base) - seconds_per_mac(device, f) for f in lower}
    groups = [
        GroupGains(
            (op.name,),
            ((base,), *((f,) for f in lower)),
            (0.0, *(op.macs * saved[f] for f in lower)),
            (0.0,) * (1 + len(lower)),
        )
        for op in graph.ops
    ]
    return Gains("theoretical_time", "s", "modelled", base, tuple(groups))
