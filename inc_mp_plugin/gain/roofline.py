"""Modelled time gain: a roofline for every op, and a list schedule for every group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.formats import check_formats, get_format
from inc_mp_plugin.gain.accelerators import ACCELERATORS, Accelerator, peak
from inc_mp_plugin.gain.configurations import Configuration, configurations
from inc_mp_plugin.gain.schedule import Task, makespan
from inc_mp_plugin.gains import Gains, GroupGains
from inc_mp_plugin.plan import Gemm, Graph, Op


@dataclass(frozen=True, slots=True)
class Phase:
    """One forward pass of a request and how often it runs: a prompt once, a decode step per token."""

    graph: Graph
    times: int = 1


def roofline_gains(
    phases: Graph | Sequence[Phase],
    formats: Sequence[str] = ("bf16", "fp8_e4m3"),
    device: str = "gaudi2",
    sensitivity: Mapping[str, float] | None = None,
) -> Gains:
    """Price every configuration of every group by the time a device would need for it.

    A product of (m x k) and (k x n) in format f takes::

        t(f) = max(2 m k n / P_f, (b_f (m k + k n) + b_base m n) / B)

    with P_f the matrix peak that is reached in f, b_f the bytes of an element and B the bandwidth of the
    memory. Where f is not the base format, its activations are cast first, which reads and writes them:
    (b_base + b_f) bytes per element over B. Casts run on the vector engines, products on the matrix
    engine; the time of a group is that of a list schedule that keeps the order of its ops. The gain is
    the time of the group in the base format less that of the configuration, over the whole batch.

    Args:
        phases: a graph, whose one forward pass counts; or the passes of a request, with the same ops.
        formats: the base format, then the lower ones.
        device: a key of `gain.accelerators.ACCELERATORS`.
        sensitivity: of each op; it only decides which configurations of large groups are priced.

    Returns:
        Gains in seconds, modelled: from published numbers, never from a measurement.

    Raises:
        InputError: an unknown device or format, a format not below the base, or an op that one phase
            lacks.
    """
    base, *lower = check_formats(formats)
    for format in formats:
        peak(device, format)
    passes = [Phase(phases)] if isinstance(phases, Graph) else list(phases)
    graph = passes[0].graph
    for phase in passes[1:]:
        missing = graph.by_name.keys() - phase.graph.by_name.keys()
        if missing:
            message = f"op {min(missing)!r} does not run in every phase of the request"
            raise InputError(message)
    groups = []
    for group in graph.groups:
        choices = dict.fromkeys(group, (base, *lower))
        priced, note = configurations(group, choices, sensitivity or {})
        seconds = [
            sum(p.times * _group_s(p.graph, group, c, base, ACCELERATORS[device]) for p in passes)
            for c in priced
        ]
        gain = tuple(seconds[0] - s for s in seconds)
        groups.append(GroupGains(tuple(group), priced, gain, (0.0,) * len(priced), note=note))
    return Gains("roofline", "s", "modelled", base, tuple(groups))


def gemm_s(gemm: Gemm, format: str, base: str, device: Accelerator) -> float:
    """Time of one product, in seconds; its result is written in the base format.

    Example:
        One token through a 4096 x 4096 weight on Gaudi 2 waits for the memory alone.

        >>> one = gemm_s(Gemm(1, 1, 4096, 4096), "bf16", "bf16", ACCELERATORS["gaudi2"])
        >>> round(one * 2.46e12 / (2 * 4096**2), 3)
        1.0
    """
    batch, rows, inner, columns = gemm
    read = get_format(format).bytes * (rows * inner + inner * columns)
    written = get_format(base).bytes * rows * columns
    return max(2 * gemm.macs / device.reached[format], batch * (read + written) / device.bandwidth)


def cast_s(op: Op, format: str, base: str, device: Accelerator) -> float:
    """Time to cast the activations of an op, in seconds; its weight was cast beforehand."""
    elements = 0
    for batch, rows, inner, columns in op.gemms:
        elements += batch * rows * inner
        if op.kind == "bgemm":
            elements += batch * inner * columns
    return elements * (get_format(base).bytes + get_format(format).bytes) / device.bandwidth


def _group_s(
    graph: Graph, group: Sequence[str], formats: Configuration, base: str, device: Accelerator
) -> float:
    tasks: dict[str, Task] = {}
    for name, format in zip(group, formats, strict=True):
        op = graph.by_name[name]
        after = tuple(f"{other}.product" for other in op.after)
        if format != base:
            engine = "vector" if device.vector_engines else "matrix"
            tasks[f"{name}.cast"] = Task(engine, cast_s(op, format, base, device), after)
            after = (f"{name}.cast",)
        seconds = sum(gemm_s(gemm, format, base, device) for gemm in op.gemms)
        tasks[f"{name}.product"] = Task("matrix", seconds, after)
    return makespan(tasks)
