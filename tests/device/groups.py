"""Part b: the measured gain of every group (IP-ET), in CUDA graphs and launch by launch.

Of a prompt, and of a whole request. Groups of one structure are measured once; beside that, all groups of a
structure at once, which should gain as many times as much as there are groups.
"""

from __future__ import annotations

from dataclasses import asdict

from device.machine import Part
from device.timed import FORMATS, Timed, request_of
from inc_mp_plugin.core.timings import TimedConfiguration, Timing
from inc_mp_plugin.gain.configurations import free_formats
from inc_mp_plugin.gain.empirical import MeasuredGroup, candidates, measured_groups
from inc_mp_plugin.gain.paired_timing import Candidate

WAYS = [(graphs, whole) for graphs in (True, False) for whole in (False, True)]


def groups_of(timed: Timed) -> list[MeasuredGroup]:
    """The groups that stand for all others."""
    return measured_groups(timed.graph, free_formats(timed.graph, timed.ops, FORMATS, ("linear",)), {})


def everywhere(groups: list[MeasuredGroup]) -> list[Candidate]:
    """All groups of a structure at once, with all that may be lowered in FP8; of structures with several."""
    lowered = []
    for group in groups:
        if len(group.alike) > 1:
            choice = group.configurations[-1]
            formats = {
                op: name
                for ops in group.alike
                for op, name in zip(ops, choice, strict=True)
                if name != FORMATS[0]
            }
            lowered.append(Candidate(formats, 0, total=1 + len(lowered)))
    return [candidate for candidate in lowered if candidate.formats]


def rows_of(groups: list[MeasuredGroup], timing: Timing) -> list[dict[str, object]]:
    """A row for each configuration of a group."""
    measured = iter(timing.configurations)
    return [
        {"group": list(group.ops), "groups_alike": len(group.alike), **row(next(measured))}
        for group in groups
        for _ in group.configurations[1:]
    ]


def row(measured: TimedConfiguration) -> dict[str, object]:
    """A measurement without the formats of the ops that it lowers, which are all the same."""
    return {"lowered": sorted(measured.formats)} | {
        key: value for key, value in asdict(measured).items() if key not in ("formats", "compile_s")
    }


def structures(groups: list[MeasuredGroup], timing: Timing) -> list[dict[str, object]]:
    """All groups of a structure at once, against their number times the gain of one."""
    alone = {frozenset(each.formats): each for each in timing.configurations}
    compared = []
    for together in everywhere(groups):
        measured = alone[frozenset(together.formats)]
        group = next(group for group in groups if set(group.ops) & set(together.formats))
        one = alone[frozenset(group.lowered(group.configurations[-1], FORMATS[0]))]
        times = len(group.alike)
        compared.append(
            {
                "group": list(group.ops),
                "groups": times,
                "sum_s": times * one.gain_s,
                "sum_stderr_s": times * one.stderr_s,
                "measured_s": measured.gain_s,
                "stderr_s": measured.stderr_s,
                "failure": measured.failure or one.failure,
            }
        )
    return compared


def main() -> None:
    """Measure in all ways, as long as there is time."""
    part = Part()
    timed = Timed(part)
    groups = groups_of(timed)
    wanted = [*candidates(groups, FORMATS[0]), *everywhere(groups)]
    for number, (graphs, whole) in enumerate(WAYS):
        name = f"{'request' if whole else 'prompt'}, {'graphs' if graphs else 'launches'}"
        budget_s = part.left_s / (len(WAYS) - number)
        passes = timed.passes(request_of(part, whole=whole), graphs=graphs)
        timing = timed.measure(passes, wanted, graphs=graphs, budget_s=budget_s)
        part.content[name] = {
            "request": asdict(request_of(part, whole=whole)),
            "base_s": timing.price_s,
            "passes_s": dict(zip(timing.passes, timing.base_s, strict=True)),
            "rows": rows_of(groups, timing),
            "structures": structures(groups, timing),
        }
        part.save()


if __name__ == "__main__":
    main()
