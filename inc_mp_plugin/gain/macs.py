"""Theoretical time gain: MACs times the time that one of them saves (eq. 28)."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.formats import check_formats
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.gain.accelerators import peak


def seconds_per_mac(device: str, format: str) -> float:
    """Return the time of one multiply-accumulate at the device's peak, in seconds.

    Raises:
        InputError: the device is unknown, or has no peak for the format.
    """
    return 2.0 / peak(device, format)


def mac_gains(graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3"), device: str = "gaudi2") -> Gains:
    """Price every op by its MACs, per sample.

    With M the MACs of an op and t_f the time of one MAC in format f::

        c(op, f) = M (t_base - t_f)                                 (eq. 28)

    It adds up over ops, so every op is a group of its own.

    Args:
        graph: from `capture`; MACs are those of its example inputs, per sample.
        formats: the base format, then the lower ones.
        device: a key of `gain.accelerators.ACCELERATORS`.

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
    cost = sum(op.macs for op in graph.ops) * seconds_per_mac(device, base)
    return Gains("theoretical_time", "s", "modelled", base, tuple(groups), cost)
