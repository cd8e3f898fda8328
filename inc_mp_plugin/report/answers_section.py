"""Answers to tasks' documents beside the base model's: flips and margins, which say more than an accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

import numpy as np

from inc_mp_plugin.core.experiment import AnswerChange, Experiment, Trial
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.report.blocks import Blocks, Chart, Series, Table
from inc_mp_plugin.report.text import percent
from inc_mp_plugin.report.trials import levels, mean_gain, strategies


def answer_blocks(experiment: Experiment) -> Blocks:
    """Make the sentences, charts and tables of changed answers; nothing where tasks have no answers."""
    tasks = list(dict.fromkeys(task for trial in experiment.trials for task in trial.answers))
    if not tasks:
        return ()
    blocks: list[str | Chart | Table] = []
    for task in tasks:
        blocks += [_sentence(experiment, task), _chart(experiment, task), _table(experiment, task)]
    return tuple(blocks)


def _answered(experiment: Experiment, task: str) -> list[tuple[Trial, AnswerChange]]:
    return [(trial, trial.answers[task]) for trial in experiment.trials if task in trial.answers]


def _sentence(experiment: Experiment, task: str) -> str:
    """Say how often accuracy and margin tell a plan from the base model, and what goes with the margin."""
    changes = [change for _, change in _answered(experiment, task)]
    accuracy = sum(_is_off_zero(change.accuracy_interval) for change in changes)
    margin = sum(_is_off_zero(change.margin_interval) for change in changes)
    text = (
        f"{task}, {changes[0].documents} documents: of {len(changes)} runs of plans, {accuracy} differ from "
        f"the base format in accuracy by more than the interval of paired documents, {margin} in the margin."
    )
    correlations = ", ".join(_correlations(experiment, task))
    return (
        f"{text} Correlation with the root mean square change of the margin over these runs: {correlations}."
    )


def _correlations(experiment: Experiment, task: str) -> Iterator[str]:
    answered = _answered(experiment, task)
    by_kl = [(t.kl.measured, change.margin_rms) for t, change in answered if t.kl is not None]
    by_loss = [
        ((t.measured / experiment.loss_ms) ** 0.5, change.margin_rms)
        for t, change in answered
        if t.measured is not None
    ]
    for name, pairs in (("KL", by_kl), ("NRMSE", by_loss)):
        values = np.array(pairs).reshape(-1, 2).T
        if len(pairs) > 2 and all(np.ptp(row) > 0 for row in values):
            yield f"{name} {np.corrcoef(values)[0, 1]:+.2f}"
        else:
            yield f"{name} not known"


def _chart(experiment: Experiment, task: str) -> Chart:
    lines = tuple(_series(experiment, task, strategy) for strategy in strategies(experiment))
    return Chart(
        f"margin-{experiment.objective}-{task}",
        f"How much less sure of the right answers of {task} is the model at each gain? Mean over documents "
        "and seeds; bars: intervals over documents. Above: better.",
        "gain, % of the largest",
        "change of the margin, nats",
        (Series("base format", "reference", (0.0, 100.0), (0.0, 0.0)), *lines),
    )


def _series(experiment: Experiment, task: str, strategy: str) -> Series:
    points = []
    for group in levels(experiment, strategy).values():
        changes = [trial.answers[task] for trial in group if task in trial.answers]
        if changes:
            ends = [change.margin_interval for change in changes]
            middle = fmean(change.margin for change in changes)
            interval = fmean(end.low for end in ends), fmean(end.high for end in ends)
            points.append((mean_gain(experiment, group), middle, *interval))
    x, y, lower, upper = tuple(zip(*points, strict=True)) or ((), (), (), ())
    return Series(strategy, strategy, x, y, lower, upper)


def _table(experiment: Experiment, task: str) -> Table:
    rows = tuple(
        (
            f"{trial.strategy}, {percent(trial.gain or 0.0, experiment.largest_gain):.0f} %",
            str(trial.seed),
            "–" if trial.kl is None else f"{trial.kl.measured:.2e}",
            f"{100 * change.flips:.1f}",
            _points(change),
            _margin(change),
            f"{change.margin_rms:.3f}",
        )
        for trial, change in _answered(experiment, task)
    )
    caption = (
        f"Answers to {task} beside those of the base format, with intervals over documents: documents "
        "answered otherwise, change of the accuracy in points, and of the margin: the log-probability of "
        "the right answer minus that of the best wrong one, or the former alone where there is no wrong one."
    )
    return Table(
        caption, ("plan, gain", "seed", "KL", "flips, %", "accuracy, points", "margin, nats", "its RMS"), rows
    )


def _points(change: AnswerChange) -> str:
    ends = change.accuracy_interval
    return f"{100 * change.accuracy:+.1f} ({100 * ends.low:+.1f} to {100 * ends.high:+.1f})"


def _margin(change: AnswerChange) -> str:
    ends = change.margin_interval
    return f"{change.margin:+.3f} ({ends.low:+.3f} to {ends.high:+.3f})"


def _is_off_zero(interval: Interval) -> bool:
    """Tell if an interval leaves zero out."""
    return interval.low > 0 or interval.high < 0
