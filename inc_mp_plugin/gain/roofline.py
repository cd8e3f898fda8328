"""Modelled time gain: a roofline for every op, and a list schedule for every group."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Gemm, Graph, Op
from inc_mp_plugin.core.literals import Accelerator
from inc_mp_plugin.gain.accelerators import ACCELERATORS, Peaks, peak
from inc_mp_plugin.gain.configurations import configurations
from inc_mp_plugin.gain.schedule import Task, makespan

_FP8 = "fp8_e4m3"  # of the KV cache


@dataclass(frozen=True, slots=True)
class Phase:
    """One forward pass of a request and how often it runs: a prompt once, a decode step per token.

    `idle` ops do not run themselves in this pass (a fused kernel does their work), so their format does not
    matter; `cached` bgemms read their second input from a KV cache in FP8.
    """

    graph: Graph
    times: int = 1
    idle: frozenset[str] = frozenset()
    cached: frozenset[str] = frozenset()


def roofline_gains(
    phases: Graph | Sequence[Phase],
    formats: Sequence[str] = ("bf16", "fp8_e4m3"),
    device: Accelerator = "gaudi2",
    sensitivity: Mapping[str, float] | None = None,
    *,
    ties: Sequence[Sequence[str]] = (),
    kept: Collection[str] = (),
) -> Gains:
    """Price every configuration of every group by the time a device would need for it.

    A product of (m x k) and (k x n) in format f takes::

        t(f) = max(2 m k n / P_f, (b_f (m k + k n) + b_base m n) / B)

    with P_f the matrix peak that is reached in f, b_f the bytes of an element and B the bandwidth of the
    memory. Where f is not the base format, its activations are cast first, which reads and writes them:
    (b_base + b_f) bytes per element over B. A KV cache in FP8 is read as it is by a product in FP8, and is
    cast for a product in the base format. An op that runs in a share of the passes only (an expert) takes
    that share of its time. Casts run on the vector engines where the device has them, products on the matrix
    engine; the time of a group is that of a list schedule that keeps the order of its ops. The gain is the
    time of the group in the base format less that of the configuration, over the whole batch.

    Args:
        phases: a graph, whose one forward pass counts; or the passes of a request, with the same ops.
        formats: the base format, then the lower ones.
        device: a key of `gain.accelerators.ACCELERATORS`.
        sensitivity: value of each op; decides which configurations of large groups are priced.
        ties: ops that share a format; they decide the same, and nothing else.
        kept: ops that stay in the base format.

    Returns:
        Gains in seconds, modelled: from published numbers, never from a measurement.

    Raises:
        InputError: an unknown device or format, a format not below the base, or an op that one phase
            lacks.
    """
    base, *lower = check_formats(formats)
    for format_name in formats:
        peak(device, format_name)
    passes = [Phase(phases)] if isinstance(phases, Graph) else list(phases)
    graph = passes[0].graph
    for phase in passes[1:]:
        missing = graph.by_name.keys() - phase.graph.by_name.keys()
        if missing:
            message = f"op {min(missing)!r} does not run in every phase of the request"
            raise InputError(message)
    times: dict[object, float] = {}  # groups of the same structure take the same time
    groups, cost = [], 0.0
    for index, group in enumerate(graph.groups):
        choices = {op: (base,) if op in kept else (base, *lower) for op in group}
        priced, note = configurations(group, choices, sensitivity or {}, ties)
        likeness = _likeness(passes, index, group)
        seconds = []
        for configuration in priced:
            if (likeness, configuration) not in times:
                planned = dict(zip(group, configuration, strict=True))
                times[likeness, configuration] = sum(
                    p.times * _group_s(p, planned, base, ACCELERATORS[device]) for p in passes
                )
            seconds.append(times[likeness, configuration])
        cost += seconds[0]
        gain = tuple(seconds[0] - s for s in seconds)
        groups.append(GroupGains(tuple(group), priced, gain, (0.0,) * len(priced), note=note))
    return Gains("roofline", "s", "modelled", base, tuple(groups), cost)


def gemm_s(gemm: Gemm, format_name: str, base: str, peaks: Peaks) -> float:
    """Return the time of one product, in seconds; its result is written in the base format.

    The time is that of the arithmetic or that of the memory traffic, whichever is longer.

    Args:
        gemm: shape of the product: batch, rows, inner, columns.
        format_name: format of both factors.
        base: format of the result.
        peaks: peaks of the device.

    Example:
        One token through a 4096 x 4096 weight on Gaudi 2 waits for the memory alone.

        >>> seconds = gemm_s(Gemm(1, 1, 4096, 4096), "bf16", "bf16", ACCELERATORS["gaudi2"])
        >>> round(seconds * 2.46e12 / (2 * 4096**2), 3)
        1.0
    """
    batch, rows, inner, columns = gemm
    read = get_format(format_name).bytes * (rows * inner + inner * columns)
    written = get_format(base).bytes * rows * columns
    return max(2 * gemm.macs / peaks.reached[format_name], batch * (read + written) / peaks.bandwidth)


def cast_s(op: Op, format_name: str, base: str, peaks: Peaks, *, cached: bool = False) -> float:
    """Return the time to cast the activations of an op, in seconds; its weight was cast beforehand.

    Args:
        op: gives the shapes.
        format_name: format of the op.
        base: format of the activations before the cast.
        peaks: peaks of the device.
        cached: if the second input comes from a KV cache in FP8.
    """
    elements = sum(batch * rows * inner for batch, rows, inner, _ in op.gemms) if format_name != base else 0
    second = sum(batch * inner * columns for batch, _, inner, columns in op.gemms)
    if op.kind == "bgemm" and cached == (format_name == base):
        elements += second  # to the lower format, or back to the base format: the same bytes
    lower = get_format(_FP8 if format_name == base else format_name)
    return op.share * elements * (get_format(base).bytes + lower.bytes) / peaks.bandwidth


def _likeness(passes: Sequence[Phase], index: int, group: Sequence[str]) -> object:
    """Return a key that groups share if they take the same time.

    The key is the structure of the group in every pass, and which of its ops are idle or cached there.
    Where structures are not known, or a pass is grouped differently, the key is the group itself.
    """
    if not all(phase.graph.structures and phase.graph.groups[index] == tuple(group) for phase in passes):
        return tuple(group)
    return tuple(
        (phase.graph.structures[index], *((op in phase.idle, op in phase.cached) for op in group))
        for phase in passes
    )


def _group_s(phase: Phase, formats: Mapping[str, str], base: str, peaks: Peaks) -> float:
    tasks: dict[str, Task] = {}
    for name, planned in formats.items():
        op = phase.graph.by_name[name]
        idle = name in phase.idle
        format_name = base if idle else planned
        after = tuple(f"{other}.product" for other in op.after)
        cast = cast_s(op, format_name, base, peaks, cached=name in phase.cached and not idle)
        if cast:
            engine = "vector" if peaks.vector_engines else "matrix"
            tasks[f"{name}.cast"] = Task(engine, cast, after)
            after = (f"{name}.cast",)
        seconds = op.share * sum(gemm_s(gemm, format_name, base, peaks) for gemm in op.gemms)
        tasks[f"{name}.product"] = Task("matrix", seconds, after)
    return makespan(tasks)
