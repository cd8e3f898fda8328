"""Trials of an experiment, grouped and averaged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean

from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.report.text import percent


def strategies(experiment: Experiment) -> list[str]:
    """List the strategies of an experiment, in the order of their first trials."""
    return list(dict.fromkeys(trial.strategy for trial in experiment.trials))


def levels(experiment: Experiment, strategy: str) -> dict[float, list[Trial]]:
    """Group the trials of a strategy by level, rising."""
    groups: dict[float, list[Trial]] = {}
    for trial in sorted(experiment.trials, key=lambda trial: trial.level):
        if trial.strategy == strategy:
            groups.setdefault(trial.level, []).append(trial)
    return groups


def measured(trials: Iterable[Trial]) -> list[float]:
    """List the measured loss MSEs, as far as there are any."""
    return [trial.measured for trial in trials if trial.measured is not None]


def measured_kl(trials: Iterable[Trial]) -> list[float]:
    """List the measured KL divergences, as far as there are any."""
    return [trial.kl.measured for trial in trials if trial.kl is not None]


def mean_gain(experiment: Experiment, trials: Iterable[Trial]) -> float:
    """Return the mean gain of trials in percent of the largest."""
    return percent(fmean([trial.gain or 0.0 for trial in trials]), experiment.largest_gain)


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation of a sample; 0 of a single value.

    Example:
        >>> deviation([1.0, 3.0]), deviation([2.0])
        (1.4142135623730951, 0.0)
    """
    if len(values) < 2:
        return 0.0
    middle = fmean(values)
    return math.sqrt(math.fsum((value - middle) ** 2 for value in values) / (len(values) - 1))


def differences(experiment: Experiment, trials: Iterable[Trial], metric: str) -> list[float]:
    """Return the differences of scores to that of the base format, in percent of the latter.

    Args:
        experiment: source of the scores in the base format.
        trials: to compare; a trial without this score is left out.
        metric: name of the score.
    """
    base = experiment.base_scores[metric]
    return [100.0 * (trial.scores[metric] - base) / abs(base) for trial in trials if metric in trial.scores]
