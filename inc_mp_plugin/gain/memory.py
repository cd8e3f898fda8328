"""Memory gain: bytes of weights saved (eq. 29, 30)."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Graph, Op


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
        Gains in bytes, exact; every op is a group of its own. The cost is that of all their weights, of a
        tied one none.

    Raises:
        InputError: an unknown format, or one not below the base.
    """
    base, *lower = check_formats(formats)
    groups = []
    for op in graph.ops:
        choices = [] if op.kind == "bgemm" else lower
        groups.append(
            GroupGains(
                (op.name,),
                ((base,), *((f,) for f in choices)),
                (0.0, *(_saved_bytes(op, base, f) for f in choices)),
                (0.0,) * (1 + len(choices)),
            )
        )
    cost = sum(_bytes(op, base) for op in graph.ops)
    return Gains("memory", "byte", "exact", base, tuple(groups), cost)


def _bytes(op: Op, base: str) -> float:
    return 0.0 if op.tied else op.weight_elements * get_format(base).bytes


def _saved_bytes(op: Op, base: str, lower: str) -> float:
    return _bytes(op, base) - op.weight_elements * get_format(lower).bytes
