"""Trials of an experiment, grouped and averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from inc_mp_plugin.core.results import Experiment, Trial


def levels(trials: Iterable[Trial], strategy: str) -> dict[float, list[Trial]]:
    """Group the trials of a strategy by level, rising."""
    found: dict[float, list[Trial]] = {}
    for trial in sorted(trials, key=lambda trial: trial.level):
        if trial.strategy == strategy:
            found.setdefault(trial.level, []).append(trial)
    return found


def measured(trials: Iterable[Trial]) -> list[float]:
    """List the measured loss MSEs, as far as there are any."""
    return [trial.measured for trial in trials if trial.measured is not None]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value.

    Example:
        >>> deviation([1.0, 3.0]), deviation([2.0])
        (1.4142135623730951, 0.0)
    """
    if len(values) < 2:
        return 0.0
    middle = mean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def percent(one: Experiment, gain: float) -> float:
    """Return a gain in percent of the largest."""
    return 100.0 * gain / one.largest_gain if one.largest_gain else 0.0


def differences(one: Experiment, trials: Iterable[Trial], metric: str) -> list[float]:
    """Return the differences of scores to that of the base format, in percent of the latter.

    Args:
        one: the experiment, which has the scores in the base format.
        trials: those to compare; a trial without this score is left out.
        metric: name of the score.
    """
    base = one.base_scores[metric]
    return [100.0 * (trial.scores[metric] - base) / abs(base) for trial in trials if metric in trial.scores]
