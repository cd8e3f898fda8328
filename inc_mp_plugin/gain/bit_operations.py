"""Compute saved, in bit operations: MACs times the bits of both factors."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Graph


def bit_operation_gains(
    graph: Graph, formats: Sequence[str] = ("bf16", "fp8_e4m3"), kept: Collection[str] = ()
) -> Gains:
    """Price every op by the bit operations it saves, per sample.

    With M the MACs of an op, whose weight and input (both inputs of a bgemm) have b_f bits in format f::

        c(op, f) = M (b_base^2 - b_f^2)

    so that a budget of them is one of compute, as in arXiv 2301.13330. It adds up over ops, so every op is a
    group of its own.

    Args:
        graph: from `capture`; MACs are those of its example inputs, per sample.
        formats: the base format, then the lower ones.
        kept: ops that do not choose, such as a first and a last layer; they neither gain nor count as cost.

    Returns:
        Gains in bit operations, exact.

    Raises:
        InputError: an unknown format, or one not below the base.

    Example:
        >>> from inc_mp_plugin.core.plan import Op
        >>> graph = Graph((Op("a", "linear", 10, 10, 1),), (("a",),), (), {})
        >>> gains = bit_operation_gains(graph, ("int4", "int2"))
        >>> gains.cost, gains.groups[0].gain
        (160.0, (0.0, 120.0))
    """
    base, *lower = check_formats(formats)
    squares = {format: float(get_format(format).bits ** 2) for format in formats}
    groups = [
        GroupGains(
            (op.name,),
            ((base,), *((f,) for f in lower)),
            (0.0, *(op.macs * (squares[base] - squares[f]) for f in lower)),
            (0.0,) * (1 + len(lower)),
        )
        for op in graph.ops
        if op.name not in kept
    ]
    cost = squares[base] * sum(op.macs for op in graph.ops if op.name not in kept)
    return Gains("bit_operations", "bit operation", "exact", base, tuple(groups), cost)
