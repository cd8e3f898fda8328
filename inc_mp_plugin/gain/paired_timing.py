"""Paired timing: a configuration and the base format in turns, until their difference is precise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.timings import OVER_BUDGET, TimedConfiguration, Timing
from inc_mp_plugin.gain.bench import FAILURES, LEAST_PAIRS, Bench, Formats, Pass, TimingSettings, one_line
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.runtime.store import fingerprint

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.gain.devices import Clock, Device
    from inc_mp_plugin.runtime.store import Partial

    Samples = dict[str, FloatArray]


_SHORTER = "timing.budget_s bounds it"
MANY = 1e9  # pairs, where time is no limit


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration to measure, its group, and the number of groups that its gain counts for.

    `total` numbers the sum of gains that the gain is part of: the precision is relative to this sum.
    """

    formats: Formats
    group: int
    shared_by: int = 1
    total: int = 0

    @property
    def key(self) -> str:
        """Name of the samples in a partial file."""
        return fingerprint(dict(self.formats))

    def __hash__(self) -> int:
        """Hash by what is measured."""
        return hash(self.key)


def measure(
    device: Device,
    select: Callable[[Formats], None],
    passes: Sequence[Pass],
    candidates: Sequence[Candidate],
    *,
    settings: TimingSettings,
    partial: Partial,
    clock: Clock = time.monotonic,
) -> Timing:
    """Time configurations against the all-base model.

    Pass by pass, base and configuration alternate, A B A B ... A, and each B is compared with the mean
    of its two neighbours, so that a linear drift cancels::

        gain = median_i [ (A_i + A_{i+1}) / 2 - B_i ]

    The gain of a request is the sum over its passes of times x gain. The standard error of a median is
    1.2533 sigma sqrt(4/3 / n) (neighbours share an A), with sigma from the median absolute deviation, so
    that outliers move neither.

    Args:
        device: runs and times a call.
        select: puts these ops into these formats and all others into the base format.
        passes: all passes of one request.
        candidates: the configurations to measure.
        settings: how long to measure.
        partial: keeps the samples of finished measurements.
        clock: for the time budget.

    Raises:
        InputError: the base itself cannot run.
        NonFiniteError: the device reports a time that is not a number.
    """
    bench = Bench(device, select, settings)
    base_s = {forward.name: bench.base_s(forward) for forward in passes}
    samples: Samples = partial.load()
    tasks = [_Task(candidate, forward) for candidate in candidates for forward in passes]
    finished = sum(task.key in samples for task in tasks)
    if finished:
        say(f"timing: going on after {finished} of {len(tasks)} measurements that were made before")
    failures: dict[str, str] = {}
    deadline = math.inf if settings.budget_s is None else clock() + settings.budget_s
    for number in count(1):
        runnable = [task for task in tasks if task.candidate.key not in failures]
        todo = dict.fromkeys((task for task in runnable if task.key not in samples), settings.repeats)
        todo = todo or _imprecise(runnable, samples, settings)
        if not todo or clock() > deadline:
            break
        with tracked(list(todo), f"Timing, round {number}", noun="measurement", shorter=_SHORTER) as bar:
            for index, task in enumerate(bar):
                share_s = (deadline - clock()) / (len(todo) - index)
                pairs = min(todo[task], _affordable(share_s, base_s[task.forward.name]))
                if not pairs or task.candidate.key in failures:
                    continue
                try:
                    measured = bench.pairs(task.forward, task.candidate.formats, pairs)
                except FAILURES as error:
                    failures[task.candidate.key] = one_line(error)
                    continue
                before = [samples[task.key]] if task.key in samples else []
                samples[task.key] = np.concatenate([*before, measured])
                partial.save(samples)
    select({})
    timed = [_timed(c, passes, samples, failures.get(c.key, "")) for c in candidates]
    times = {forward.name: forward.times for forward in passes}
    medians = tuple(_base_median(forward, tasks, samples, base_s[forward.name]) for forward in passes)
    return Timing(device.name, device.description, times, medians, tuple(timed))


@dataclass(frozen=True, slots=True)
class _Task:
    """One pass of one configuration."""

    candidate: Candidate
    forward: Pass

    @property
    def key(self) -> str:
        return f"{self.forward.name}-{self.candidate.key}"

    def __hash__(self) -> int:
        return hash(self.key)


def gain_and_stderr(differences_s: FloatArray) -> tuple[float, float]:
    """Return the median of differences between neighbours, and its standard error; see `measure`.

    Example:
        >>> gain_and_stderr(np.array([1.0, 1.0, 1.0, 9.0]))
        (1.0, 0.0)
    """
    median = float(np.median(differences_s))
    sigma = 1.4826 * float(np.median(np.abs(differences_s - median)))
    return median, 1.2533 * sigma * math.sqrt(4 / 3 / len(differences_s))


def _affordable(share_s: float, pass_s: float) -> int:
    """Count the pairs that a share of the time budget allows.

    While any time is left, these are at least `LEAST_PAIRS`.
    """
    if share_s <= 0:
        return 0
    # About four calls go into warming up.
    return max(LEAST_PAIRS, int(min(share_s / pass_s, MANY) / 2 - 2))


def _imprecise(tasks: Sequence[_Task], samples: Samples, settings: TimingSettings) -> dict[_Task, int]:
    """Find the measurements that are not precise enough, and the number of pairs to add to each.

    These are the measurements whose standard error is above their part of the allowed one.
    """
    stderr: dict[_Task, float] = {}
    gains: dict[Candidate, float] = {}
    for task in tasks:
        gain_s, stderr_s = gain_and_stderr(_differences(samples[task.key]))
        weight = task.candidate.shared_by * task.forward.times
        stderr[task] = weight * stderr_s
        gains[task.candidate] = gains.get(task.candidate, 0.0) + weight * gain_s
    largest: dict[int, dict[int, float]] = {}
    for candidate, gain in gains.items():
        groups = largest.setdefault(candidate.total, {})
        groups[candidate.group] = max(groups.get(candidate.group, 0.0), abs(gain))
    passes = len({task.forward.name for task in tasks})
    part = {
        total: settings.precision * sum(groups.values()) / math.sqrt(len(groups) * passes)
        for total, groups in largest.items()
    }
    added = {}
    for task in tasks:
        pairs, allowed = len(samples[task.key]), part[task.candidate.total]
        if stderr[task] > allowed and pairs < settings.most_repeats:
            needed = pairs * (stderr[task] / allowed) ** 2 if allowed else math.inf
            # Not all at once: several visits average what the machine does between them.
            visit = max(settings.repeats, pairs // 2)
            more = min(needed - pairs, settings.most_repeats - pairs, visit)
            added[task] = int(max(more, LEAST_PAIRS))
    return added


def _differences(samples: FloatArray) -> FloatArray:
    """Return the time of the base less that of the configuration, of each pair, in seconds."""
    difference: FloatArray = samples[:, 0] - samples[:, 1]
    return difference


def _base_median(forward: Pass, tasks: Sequence[_Task], samples: Samples, start_s: float) -> float:
    seconds = [samples[t.key][:, 0] for t in tasks if t.forward is forward and t.key in samples]
    return float(np.median(np.concatenate(seconds))) if seconds else start_s


def _timed(
    candidate: Candidate, passes: Sequence[Pass], samples: Samples, failure: str
) -> TimedConfiguration:
    keys = [_Task(candidate, forward).key for forward in passes]
    if failure or not all(key in samples for key in keys):
        return TimedConfiguration(candidate.formats, failure=failure or OVER_BUDGET)
    estimates = [gain_and_stderr(_differences(samples[key])) for key in keys]
    columns = [np.median(samples[key], axis=0) for key in keys]
    return TimedConfiguration(
        candidate.formats,
        math.fsum(forward.times * gain for forward, (gain, _) in zip(passes, estimates, strict=True)),
        math.hypot(*(forward.times * error for forward, (_, error) in zip(passes, estimates, strict=True))),
        tuple(len(samples[key]) for key in keys),
        tuple(float(base) for base, _, _ in columns),
        tuple(float(lowered) for _, lowered, _ in columns),
        max(math.fsum(float(samples[key][0, 2] - c[1]) for key, c in zip(keys, columns, strict=True)), 0.0),
    )
