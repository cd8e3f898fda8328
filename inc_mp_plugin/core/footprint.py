"""Memory that a sensitivity pass takes beside the weights: of all blocks at once, or of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from inc_mp_plugin.core.blocks import block_of, repeated_blocks
from inc_mp_plugin.core.graph import Graph, Op

LOGITS_AT_ONCE = 2**25  # 128 MiB in FP32: more are computed for some tokens at a time, in low memory
SCORES_AT_ONCE = 2**22  # of attention, as far as one head has no more: 16 MiB in FP32
# Between two ops a model keeps more than they read and give: norms in FP32, activations, residuals. What
# attention's products read and give is most of all scores and weights, with nothing beside them.
_KEPT, _KEPT_OF_PRODUCTS = 1.6, 1.0
_LOGITS = 3.0  # in the base format: themselves, their gradient, and what the head reads
_FIXED = 220 * 10**6  # slabs of weight gradients, pieces of tensors, and their errors in FP32
# In low memory, by measured peaks (docs/pages/large.md): of one block with the gradients of its tensors, and
# of the scores that attention has at once, with weights and both gradients, and four times in FP32.
_OF_A_BLOCK, _OF_SCORES, _SCORES_IN_FP32, _LOGITS_IN_PARTS = 2.2, 4.0, 16, 2.5


class Footprint(NamedTuple):
    """Bytes that a pass takes beside the weights of the model, with `memory: low` and with `high`."""

    low: int
    high: int


def footprint(graph: Graph, itemsize: int, *, rounded: bool = False, in_files: bool = True) -> Footprint:
    """Estimate the memory of a sensitivity pass through a batch of the shape that a graph was captured with.

    With t(op) the elements of an op's inputs and outputs, k(b) what block b keeps, the sum of 1.6 t of its
    linear ops and 1.0 t of its attention products, l(b) the sum of t of its linear ops, s(b) the scores of
    attention that are computed at once, and ops outside of blocks::

        high = bytes (sum_b k(b) + 3 t(outside)) + fixed,  or bytes x weights, if they are more
        low  = max_b(bytes (2.2 l(b) + 4 s(b)) + 16 min(s(b), 2^22)),  or bytes x 2.5 t'(outside), + fixed

    where t' counts LOGITS_AT_ONCE of a head's outputs at most, and s(b) is of one key head, or of as many as
    have SCORES_AT_ONCE.

    Args:
        graph: from `capture`.
        itemsize: bytes of an element in the base format.
        rounded: everything is rounded once, with a copy of all weights in `high`.
        in_files: inputs of blocks lie in files, as on a CPU; else they add to `low`.

    Returns:
        Both; they are the same for a model without repeated blocks.
    """
    names = repeated_blocks(graph)
    parts: dict[str | None, list[Op]] = {None: [], **{name: [] for name in names}}
    for op in graph.ops:
        parts[block_of(op.name, names)].append(op)
    outside = sum(map(_elements, parts.pop(None)))
    blocks = [ops for name, ops in parts.items() if name is not None]
    weights = sum(op.weight_elements for op in graph.ops) if rounded else 0
    high = itemsize * max(sum(map(_kept, blocks)) + _LOGITS * outside, weights)
    if not names:
        return Footprint(int(high) + _FIXED, int(high) + _FIXED)
    largest = max(_of_a_block(ops, itemsize) for ops in blocks)
    inputs = 0 if in_files else itemsize * sum(map(_input, blocks))
    low = inputs + max(largest, itemsize * _LOGITS_IN_PARTS * _in_parts(graph, names))
    return Footprint(int(low) + _FIXED, int(high) + _FIXED)


def _kept(block: Sequence[Op]) -> float:
    """Count the elements that a block keeps for its gradients."""
    return sum((_KEPT_OF_PRODUCTS if op.kind == "bgemm" else _KEPT) * _elements(op) for op in block)


def _input(block: Sequence[Op]) -> int:
    return sum(gemm.batch * gemm.rows * gemm.inner for gemm in block[0].gemms)


def _of_a_block(block: Sequence[Op], itemsize: int) -> float:
    """Estimate the bytes of a block that is differentiated."""
    linears = sum(_elements(op) for op in block if op.kind != "bgemm")
    scores = max((_scores(op) for op in block if op.kind == "bgemm"), default=0.0)
    in_fp32 = _SCORES_IN_FP32 * min(scores, SCORES_AT_ONCE)
    return itemsize * (_OF_A_BLOCK * linears + _OF_SCORES * scores) + in_fp32


def _scores(op: Op) -> float:
    """Count the scores that attention computes at once: of one key head at least, in all samples."""
    most = 0.0
    for gemm in op.gemms:
        every = gemm.batch * gemm.rows * max(gemm.inner, gemm.columns)
        samples = max(1, round(len(op.gemms) * gemm.macs / op.macs)) if op.macs else 1
        most = max(most, every * samples / gemm.batch, min(every, SCORES_AT_ONCE))
    return most


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
