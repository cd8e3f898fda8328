"""Empirical time gain: which configurations have to be measured, and gains from the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.core.timings import OVER_BUDGET, TimedConfiguration, Timing
from inc_mp_plugin.gain.configurations import Configuration, configurations
from inc_mp_plugin.gain.timing import Candidate


@dataclass(frozen=True, slots=True)
class Course:
    """One group to be measured: its configurations, and the groups that are like it, itself first."""

    configurations: tuple[Configuration, ...]
    note: str
    groups: tuple[tuple[str, ...], ...]

    @property
    def measured(self) -> tuple[str, ...]:
        """The ops of the group that stands for the others."""
        return self.groups[0]

    def lowered(self, configuration: Configuration, base: str) -> dict[str, str]:
        """Map the ops of the measured group that leave the base format to their formats."""
        pairs = zip(self.measured, configuration, strict=True)
        return {op: format_name for op, format_name in pairs if format_name != base}


def courses(
    graph: Graph,
    formats: Mapping[str, Sequence[str]],
    sensitivity: Mapping[str, float],
    ties: Sequence[Sequence[str]] = (),
    *,
    every_group: bool = False,
) -> list[Course]:
    """List what has to be measured: one group of every structure, or every group.

    Groups of the same structure that are not free in the same way (an op of one may not leave the base
    format) are measured apart.

    Args:
        graph: from `capture`.
        formats: the formats that each op may take, the base format first.
        sensitivity: of each op; it only decides which configurations of large groups are measured.
        ties: ops that share a format; they only decide that, too.
        every_group: measure every group on its own.
    """
    alike: dict[object, list[tuple[str, ...]]] = {}
    for index, group in enumerate(graph.groups):
        shared = bool(graph.structures) and not every_group
        structure = graph.structures[index] if shared else index
        free = tuple(tuple(formats[op]) for op in group)
        alike.setdefault((structure, free), []).append(group)
    return [
        Course(*configurations(groups[0], formats, sensitivity, ties), tuple(groups))
        for groups in alike.values()
    ]


def candidates(listed: Sequence[Course], base: str) -> list[Candidate]:
    """List everything to measure except the base itself."""
    return [
        Candidate(course.lowered(configuration, base), index, len(course.groups))
        for index, course in enumerate(listed)
        for configuration in course.configurations[1:]
    ]


def empirical_gains(listed: Sequence[Course], timing: Timing, graph: Graph, base: str) -> Gains:
    """Turn measurements into the empirical time gain of every group (section 2.3.1).

    Its gain in configuration p is::

        c(group, p) = price(all base) - price(this group in p, all others base)

    where the price is TTFT, or TTFT + output tokens x TPOT. A group with a configuration that failed
    keeps the base format alone; a configuration that was not measured is left out. Both are noted.

    Args:
        listed: from `courses`.
        timing: of `candidates`.
        graph: whose groups they are.
        base: the base format.

    Returns:
        Gains in seconds, measured; groups that share a measurement say on which group it was made.
    """
    measured = {frozenset(one.formats.items()): one for one in timing.configurations}
    found: dict[tuple[str, ...], GroupGains] = {}
    for course in listed:
        lowered = [course.lowered(configuration, base) for configuration in course.configurations[1:]]
        timed = [measured[frozenset(formats.items())] for formats in lowered]
        kept, note = _usable(course, timed)
        for group in course.groups:
            found[group] = GroupGains(
                group,
                (course.configurations[0], *(course.configurations[1 + i] for i in kept)),
                (0.0, *(timed[i].gain_s for i in kept)),
                (0.0, *(timed[i].stderr_s for i in kept)),
                course.measured if group != course.measured and kept else (),
                note,
            )
    groups = tuple(found[tuple(group)] for group in graph.groups)
    return Gains("empirical_time", "s", "measured", base, groups, timing.price_s)


def _usable(course: Course, timed: Sequence[TimedConfiguration]) -> tuple[list[int], str]:
    """Return the indices of the measurements that count, and a note on what was left out.

    If one of the measurements failed, none counts.
    """
    failed = [one for one in timed if one.failure not in ("", OVER_BUDGET)]
    if failed:
        return [], f"left in the base format: {', '.join(failed[0].formats)} failed: {failed[0].failure}"
    kept = [index for index, one in enumerate(timed) if not one.failure]
    notes = [course.note] if course.note else []
    if len(kept) < len(timed):
        notes.append(f"{len(timed) - len(kept)} configurations were not measured: {OVER_BUDGET}")
    return kept, "; ".join(notes)
