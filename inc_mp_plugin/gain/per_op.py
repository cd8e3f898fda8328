"""Gains that add up over ops: bytes of weights, MACs and bit operations; every op is a group of its own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.literals import Accelerator
from inc_mp_plugin.gain.accelerators import peak


def memory_gains(graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3")) -> Gains:
    """Price every op by the bytes its weight saves.

    With n the weight elements of an op and b_f the bytes of one element in format f::

        c(op, f) = n (b_base - b_f)                                 (eq. 29, 30)

    Only weights are stored, so a bgemm stays in the base format. A tied weight (a head that shares
    the embedding's) gains nothing: INC unties it, and its copy costs n b_f on top.

    Args:
        graph: from `capture`.
        formats: the base format, then the lower ones.

    Returns:
        Gains in bytes, exact; every op is a group of its own. The cost is the bytes of all weights in the
        base format; a tied weight counts none.

    Raises:
        InputError: an unknown format, or one not below the base.
    """
    base, *lower = check_formats(formats)

    def stored(op: Op) -> float:
        return 0.0 if op.tied else op.weight_elements * get_format(base).bytes

    def saved(op: Op, format_name: str) -> float:
        return stored(op) - op.weight_elements * get_format(format_name).bytes

    groups = [_group(op, base, () if op.kind == "bgemm" else lower, saved) for op in graph.ops]
    return Gains("memory", "byte", "exact", base, tuple(groups), sum(map(stored, graph.ops)))


def seconds_per_mac(device: Accelerator, format_name: str) -> float:
    """Return the time of one multiply-accumulate at the device's peak, in seconds.

    Raises:
        InputError: the device is unknown, or has no peak for the format.
    """
    return 2.0 / peak(device, format_name)


def mac_gains(
    graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3"), device: Accelerator = "gaudi2"
) -> Gains:
    """Price every op by its MACs, per sample.

    With M the MACs of an op and t_f the time of one MAC in format f::

        c(op, f) = M (t_base - t_f)                                 (eq. 28)

    The gain adds up over ops, so every op is a group of its own.

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
    groups = [_group(op, base, lower, lambda op, f: op.macs * saved[f]) for op in graph.ops]
    cost = sum(op.macs for op in graph.ops) * seconds_per_mac(device, base)
    return Gains("theoretical_time", "s", "modelled", base, tuple(groups), cost)


def bit_operation_gains(
    graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3"), kept: Collection[str] = ()
) -> Gains:
    """Price every op by the bit operations it saves, per sample.

    With M the MACs of an op, whose weight and input (both inputs of a bgemm) have b_f bits in format f::

        c(op, f) = M (b_base^2 - b_f^2)

    A budget of bit operations is one of compute, as in arXiv 2301.13330. The gain adds up over ops, so every
    op is a group of its own.

    Args:
        graph: from `capture`; MACs are those of its example inputs, per sample.
        formats: the base format, then the lower ones.
        kept: ops of a fixed format, such as a first and a last layer; they neither gain nor count as cost.

    Returns:
        Gains in bit operations, exact.

    Raises:
        InputError: an unknown format, or one not below the base.

    Example:
        >>> from inc_mp_plugin.core.graph import Op
        >>> graph = Graph((Op("a", "linear", 10, 10, 1),), (("a",),), (), {})
        >>> gains = bit_operation_gains(graph, ("int4", "int2"))
        >>> gains.cost, gains.groups[0].gain
        (160.0, (0.0, 120.0))
    """
    base, *lower = check_formats(formats)
    squares = {format_name: float(get_format(format_name).bits ** 2) for format_name in formats}
    ops = [op for op in graph.ops if op.name not in kept]
    groups = [_group(op, base, lower, lambda op, f: op.macs * (squares[base] - squares[f])) for op in ops]
    cost = squares[base] * sum(op.macs for op in ops)
    return Gains("bit_operations", "bit operation", "exact", base, tuple(groups), cost)


def _group(op: Op, base: str, lower: Sequence[str], saved: Callable[[Op, str], float]) -> GroupGains:
    """Price an op in every format; `saved` is the gain of a lower one."""
    configurations = ((base,), *((format_name,) for format_name in lower))
    gain = (0.0, *(saved(op, format_name) for format_name in lower))
    return GroupGains((op.name,), configurations, gain, (0.0,) * len(gain))
