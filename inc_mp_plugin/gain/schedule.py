"""List scheduling of tasks over engines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Task:
    """Work of some seconds on one engine, which starts when the tasks `after` are done."""

    engine: str
    seconds: float
    after: tuple[str, ...] = ()


def makespan(tasks: Mapping[str, Task]) -> float:
    """Return the time until the last task is done, in seconds.

    Whenever an engine is free, it takes the task that is ready first; of several, the one with the
    longest chain of work behind it (Graham's list scheduling with critical-path priority).

    Args:
        tasks: in an order in which every task comes after those it waits for.

    Example:
        Two products of 2 s on one engine, the cast for the second meanwhile on another:

        >>> makespan({"a": Task("matrix", 2), "cast": Task("vector", 1), "b": Task("matrix", 2, ("cast",))})
        4.0
    """
    behind = _longest_chains(tasks)
    waiting, done = list(tasks), dict[str, float]()
    free = dict.fromkeys((task.engine for task in tasks.values()), 0.0)
    while waiting:
        starts = {
            name: max(free[tasks[name].engine], *(done[other] for other in tasks[name].after), 0.0)
            for name in waiting
            if all(other in done for other in tasks[name].after)
        }
        name = min(starts, key=lambda task: (starts[task], -behind[task]))
        done[name] = starts[name] + tasks[name].seconds
        free[tasks[name].engine] = done[name]
        waiting.remove(name)
    return max(done.values(), default=0.0)


def _longest_chains(tasks: Mapping[str, Task]) -> dict[str, float]:
    """Add to each task's own time that of the longest chain of tasks that wait for it, in seconds."""
    behind = {name: task.seconds for name, task in tasks.items()}
    for name in reversed(list(tasks)):
        for other in tasks[name].after:
            behind[other] = max(behind[other], tasks[other].seconds + behind[name])
    return behind
