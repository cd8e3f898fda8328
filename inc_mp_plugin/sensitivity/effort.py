"""Time of a sensitivity measurement, estimated from the graph and the machine before it is made."""

from __future__ import annotations

import statistics
import time

import torch

from inc_mp_plugin.core.graph import Gemm, Graph

# Rounding, norms, softmax and loss take time, too: measured passes over that of their matrix products alone.
_BESIDE_PRODUCTS = 1.5
_TRIALS = 3
_MOST_MACS = 2**31  # of a trial: a larger product is cut


def passes(*, losses: int, measured: bool, drift: bool, replays: bool) -> int:
    """Count passes over a batch, in units of a plain forward pass; a backward pass counts twice.

    Args:
        losses: numbers of losses that are differentiated: yardsticks, or draws of labels.
        measured: scales are taken from the inputs of ops, by a pass of its own in `memory: low`.
        drift: everything is rounded once.
        replays: blocks run once more for each loss, as in `memory: low`.

    Example:
        >>> passes(losses=1, measured=True, drift=False, replays=True)
        5
    """
    return 1 + 2 * losses + measured + drift + replays * losses


def estimated_s(graph: Graph, dtype: torch.dtype, *, batches: int, passes: int) -> float:
    """Estimate the time of passes over batches, s, by the speed of the graph's costliest product here.

    Args:
        graph: from `capture`, of one batch.
        dtype: of the base format.
        batches: their number.
        passes: over each batch.
    """
    gemms = [(op.share * gemm.macs, gemm) for op in graph.ops for gemm in op.gemms]
    if not gemms:
        return 0.0
    macs = sum(count for count, _ in gemms)
    costliest = max(gemms, key=lambda pair: pair[0])[1]
    return _BESIDE_PRODUCTS * passes * batches * macs / _macs_per_s(costliest, dtype)


def _macs_per_s(gemm: Gemm, dtype: torch.dtype) -> float:
    """Measure the speed of one product; its columns are cut if it is large."""
    columns = max(1, min(gemm.columns, _MOST_MACS // (gemm.rows * gemm.inner)))
    left, right = torch.ones(gemm.rows, gemm.inner, dtype=dtype), torch.ones(gemm.inner, columns, dtype=dtype)
    torch.mm(left, right)
    times = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    return gemm.rows * gemm.inner * columns / statistics.median(times)
