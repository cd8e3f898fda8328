"""Time of a sensitivity measurement, estimated from the graph and the machine before it is made."""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn

from inc_mp_plugin.core.graph import Gemm, Graph
from inc_mp_plugin.model.products_in_fp32 import NARROW, products_in_fp32
from inc_mp_plugin.model.weights import device_of
from inc_mp_plugin.runtime.progress import say

# Rounding, norms, softmax and loss take time, too: measured passes over that of their matrix products alone.
_BESIDE_PRODUCTS = 1.5
_TRIALS = 3
_MOST_MACS = 2**31  # of a trial: a larger product is cut
_MOST_MACS_TO_DECIDE, _FEWEST_MACS = 2**26, 2**27  # of a trial that is a part of the work itself
_FASTER = 1.25  # that FP32 must be: speeds scatter, and one machine should decide the same every time


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
    macs = sum(op.share * gemm.macs for op in graph.ops for gemm in op.gemms)
    costliest = _costliest(graph)
    if costliest is None:
        return 0.0
    own, in_fp32 = _speeds(costliest, dtype, _MOST_MACS)
    return _BESIDE_PRODUCTS * passes * batches * macs / (in_fp32 if _is_faster(in_fp32, own) else own)


def faster_in_fp32(model: nn.Module, graph: Graph) -> bool:
    """Decide whether the matrix products of a model in BF16 or FP16 are computed in FP32, and say so.

    The costliest product of the graph is tried both ways. A CPU whose instructions do not know a dtype, or
    for which torch has no kernel of it, is several times faster in FP32.

    Args:
        model: as it is measured.
        graph: from `capture`, of one batch.
    """
    parameter, costliest = next(model.parameters(), None), _costliest(graph)
    if parameter is None or costliest is None or device_of(model) != torch.device("cpu"):
        return False
    own, in_fp32 = _speeds(costliest, parameter.dtype, _MOST_MACS_TO_DECIDE)
    if not _is_faster(in_fp32, own):
        return False
    say(
        f"matrix products of {str(parameter.dtype).removeprefix('torch.')} are computed in float32 and "
        f"rounded, {in_fp32 / own:.1f} times as fast here (torch: {torch.backends.cpu.get_cpu_capability()})"
    )
    return True


def _is_faster(in_fp32: float, own: float) -> bool:
    return in_fp32 > _FASTER * own


def _costliest(graph: Graph) -> Gemm | None:
    gemms = [(op.share * gemm.macs, gemm) for op in graph.ops for gemm in op.gemms]
    return max(gemms, key=lambda pair: pair[0])[1] if gemms else None


def _speeds(gemm: Gemm, dtype: torch.dtype, most: int) -> tuple[float, float]:
    """Measure the speed of a product in a dtype, and in FP32 for it, MACs per second.

    The second is 0 where there is nothing to gain: for FP32, and for products that are too small to tell.

    Args:
        gemm: its columns are cut if it is large.
        dtype: of the factors.
        most: MACs of a trial.
    """
    own = _macs_per_s(gemm, dtype, most)
    if dtype not in NARROW or gemm.macs < _FEWEST_MACS:
        return own, 0.0
    with products_in_fp32():
        return own, _macs_per_s(gemm, dtype, most)


def _macs_per_s(gemm: Gemm, dtype: torch.dtype, most: int) -> float:
    columns = max(1, min(gemm.columns, most // (gemm.rows * gemm.inner)))
    left = torch.ones(gemm.rows, gemm.inner, dtype=dtype)
    right = torch.ones(columns, gemm.inner, dtype=dtype).T  # as a weight: the other way may be far slower
    torch.mm(left, right)
    times = []
    for _ in range(_TRIALS):
        start = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - start)
    return gemm.rows * gemm.inner * columns / statistics.median(times)
