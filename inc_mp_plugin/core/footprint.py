"""Memory that a sensitivity pass takes beside the weights: of all blocks at once, or of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inc_mp_plugin.core.blocks import block_of, repeated_blocks
from inc_mp_plugin.core.graph import Graph, Op

LOGITS_AT_ONCE = 2**25  # 128 MiB in FP32: more are computed for some tokens at a time, in low memory
# Between two ops a model keeps more than they read and give: norms in FP32, activations, residuals. What
# attention's products read and give is most of all scores and weights, with nothing beside them.
_KEPT, _KEPT_OF_PRODUCTS = 1.6, 1.0
# While a block is differentiated, gradients of its tensors are there, too.
_WITH_GRADIENTS = 2.0
_LOGITS = 3.0  # in the base format: themselves, their gradient, and what the head reads
_FIXED = 200 * 2**20  # slabs of weight gradients, pieces of tensors, and their errors in FP32


class Footprint(NamedTuple):
    """Bytes that a pass takes beside the weights of the model, with `memory: low` and with `high`."""

    low: int
    high: int


def footprint(graph: Graph, itemsize: int, *, rounded: bool = False) -> Footprint:
    """Estimate the memory of a sensitivity pass through a batch of the shape that a graph was captured with.

    With t(op) the elements of an op's inputs and outputs, k(b) what block b keeps, the sum of 1.6 t of its
    linear ops and 1.0 t of its attention products, and ops outside of blocks::

        high = bytes (sum_b k(b) + 3 t(outside)) + fixed,  or bytes x weights, if they are more
        low  = bytes (blocks x t(input of a block) + max(2 max_b k(b), 3 t'(outside))) + fixed

    where t' counts LOGITS_AT_ONCE of a head's outputs at most.

    Args:
        graph: from `capture`.
        itemsize: bytes of an element in the base format.
        rounded: everything is rounded once, with a copy of all weights in `high`.

    Returns:
        Both; they are the same for a model without repeated blocks.
    """
    names = repeated_blocks(graph)
    of_blocks = dict.fromkeys(names, 0.0)
    inputs, outside = 0.0, 0.0
    entered: set[str] = set()
    for op in graph.ops:
        block = block_of(op.name, names)
        if block is None:
            outside += _elements(op)
            continue
        of_blocks[block] += (_KEPT_OF_PRODUCTS if op.kind == "bgemm" else _KEPT) * _elements(op)
        if block not in entered:
            entered.add(block)
            inputs += sum(gemm.batch * gemm.rows * gemm.inner for gemm in op.gemms)
    weights = sum(op.weight_elements for op in graph.ops) if rounded else 0
    tail = _LOGITS * outside
    in_parts = _LOGITS * _in_parts(graph, names)
    high = max(sum(of_blocks.values()) + tail, weights)
    low = inputs + max(_WITH_GRADIENTS * max(of_blocks.values(), default=0.0), in_parts)
    if not names:
        low = high
    return Footprint(int(itemsize * low) + _FIXED, int(itemsize * high) + _FIXED)


def _in_parts(graph: Graph, names: Sequence[str]) -> float:
    """Count the elements outside of blocks; of a head behind them, the only other op, some outputs alone."""
    others = [op for op in graph.ops if block_of(op.name, names) is None]
    if [op.kind for op in others] != ["linear"] or graph.ops[-1] is not others[0]:
        return sum(map(_elements, others))
    outputs = sum(gemm.batch * gemm.rows * gemm.columns for gemm in others[0].gemms)
    return _elements(others[0]) - outputs + min(outputs, LOGITS_AT_ONCE)


def _elements(op: Op) -> float:
    """Count the elements of an op's inputs and outputs, weights aside, as often as it is expected to run."""
    seconds = op.kind == "bgemm"
    return op.share * sum(
        g.batch * (g.rows * (g.inner + g.columns) + g.inner * g.columns * seconds) for g in op.gemms
    )
