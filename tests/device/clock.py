"""Times of calls that are compared with each other, in the order A B B A.

No clock of a GPU can be fixed from here, so what is compared is measured in turn: forwards, then backwards,
and the median over these rounds drops what a change of clocks in between did. On a GPU all calls of a
configuration are one CUDA graph, so that the launches of small kernels are not what is measured.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch

WARM_UPS = 3


def times_s(
    runs: Mapping[str, Callable[[], object]], *, device: torch.device, rounds: int, limit_s: float
) -> dict[str, dict[str, float]]:
    """Measure every run; of each the median, its standard error, and the number of measurements.

    Args:
        runs: by name; on a GPU without synchronization, and with the same memory in every call.
        device: where they run.
        rounds: of A B B A, at most.
        limit_s: no round begins after that; the first one is always made.
    """
    ready = {name: captured(run) if device.type == "cuda" else run for name, run in runs.items()}
    measured: dict[str, list[float]] = {name: [] for name in ready}
    started = time.monotonic()
    for _ in range(rounds):
        for name in (*ready, *reversed(ready)):
            measured[name].append(_seconds(ready[name], device))
        if time.monotonic() - started > limit_s:
            break
    return {name: _summary(values) for name, values in measured.items()}


def _summary(values: list[float]) -> dict[str, float]:
    # Of a median: 1.25 standard errors of the mean, for errors that are close to normal.
    error = 1.2533 * statistics.stdev(values) / len(values) ** 0.5
    return {"s": statistics.median(values), "se_s": error, "count": len(values)}


def captured(run: Callable[[], object], pool: object = None) -> Callable[[], object]:
    """The run as a CUDA graph; warmed up on a side stream, as capturing asks for.

    Args:
        run: without synchronization, and with the same memory in every call.
        pool: of memory, that graphs share if none runs beside another; nobody reads their outputs.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    graph.replay()
    return graph.replay


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type != "cuda":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
