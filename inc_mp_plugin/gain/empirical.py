"""Empirical time gain: which configurations have to be measured, and gains from the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.timings import OVER_BUDGET, TimedConfiguration, Timing
from inc_mp_plugin.gain.configurations import Configuration, configurations
from inc_mp_plugin.gain.paired_timing import Candidate


@dataclass(frozen=True, slots=True)
class MeasuredGroup:
    """One group to be measured: its configurations, and the groups that are like it, itself first."""

    configurations: tuple[Configuration, ...]
    note: str
    alike: tuple[tuple[str, ...], ...]

    @property
    def ops(self) -> tuple[str, ...]:
        """The ops of the group that stands for the others."""
        return self.alike[0]

    def lowered(self, configuration: Configuration, base: str) -> dict[str, str]:
        """Map the ops of the measured group that leave the base format to their formats."""
        pairs = zip(self.ops, configuration, strict=True)
        return {op: format_name for op, format_name in pairs if format_name != base}


def measured_groups(
    graph: Graph,
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
    ties: Sequence[Sequence[str]] = (),
    *,
    every_group: bool = False,
) -> list[MeasuredGroup]:
    """List what has to be measured: one group of every structure, or every group.

    Groups of the same structure that are not free in the same way (an op of one may not leave the base
    format) are measured apart.

    Args:
        graph: from `capture`.
        formats: the formats that each op may take, the base format first.
        sensitivity: value of each op; decides which configurations of large groups are measured.
        ties: ops that share a format; they decide the same, and nothing else.
        every_group: measure every group on its own.
    """
    alike: dict[object, list[tuple[str, ...]]] = {}
    for index, group in enumerate(graph.groups):
        shared = bool(graph.structures) and not every_group
        structure = graph.structures[index] if shared else index
        free = tuple(tuple(formats[op]) for op in group)
        alike.setdefault((structure, free), []).append(group)
    return [
        MeasuredGroup(*configurations(groups[0], formats, sensitivity, ties), tuple(groups))
        for groups in alike.values()
    ]


def candidates(groups: Sequence[MeasuredGroup], base: str) -> list[Candidate]:
    """List everything to measure except the base itself."""
    return [
        Candidate(group.lowered(configuration, base), index, len(group.alike))
        for index, group in enumerate(groups)
        for configuration in group.configurations[1:]
    ]


def empirical_gains(groups: Sequence[MeasuredGroup], timing: Timing, graph: Graph, base: str) -> Gains:
    """Turn measurements into the empirical time gain of every group (section 2.3.1).

    The gain of a group in configuration p is::

        c(group, p) = price(all base) - price(this group in p, all others base)

    where the price is TTFT, or TTFT + output tokens x TPOT. A group with a configuration that failed
    keeps the base format alone; a configuration that was not measured is left out. Both are noted.

    Args:
        groups: from `measured_groups`.
        timing: the measurements of `candidates`.
        graph: from `capture`; gives the order of the groups.
        base: the base format.

    Returns:
        Gains in seconds, measured; a group that shares a measurement names the group that was measured.
    """
    measured = {frozenset(entry.formats.items()): entry for entry in timing.configurations}
    gains: dict[tuple[str, ...], GroupGains] = {}
    for group in groups:
        lowered = [group.lowered(configuration, base) for configuration in group.configurations[1:]]
        timed = [measured[frozenset(formats.items())] for formats in lowered]
        usable, note = _usable(group, timed)
        for ops in group.alike:
            gains[ops] = GroupGains(
                ops,
                (group.configurations[0], *(group.configurations[1 + i] for i in usable)),
                (0.0, *(timed[i].gain_s for i in usable)),
                (0.0, *(timed[i].stderr_s for i in usable)),
                group.ops if ops != group.ops and usable else (),
                note,
            )
    in_order = tuple(gains[tuple(ops)] for ops in graph.groups)
    return Gains("empirical_time", "s", "measured", base, in_order, timing.price_s)


def _usable(group: MeasuredGroup, timed: Sequence[TimedConfiguration]) -> tuple[list[int], str]:
    """Return the indices of the measurements that count, and a note on what was left out.

    If one of the measurements failed, none counts.
    """
    failed = [measured for measured in timed if measured.failure not in ("", OVER_BUDGET)]
    if failed:
        return [], f"left in the base format: {', '.join(failed[0].formats)} failed: {failed[0].failure}"
    usable = [index for index, measured in enumerate(timed) if not measured.failure]
    notes = [group.note] if group.note else []
    if len(usable) < len(timed):
        notes.append(f"{len(timed) - len(usable)} configurations were not measured: {OVER_BUDGET}")
    return usable, "; ".join(notes)
