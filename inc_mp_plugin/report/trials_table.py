"""The table of the trials of an experiment, one row each."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.core.results import KLPoint
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.report.text import amount, percent, span
from inc_mp_plugin.report.trials import measured


def trials_table(caption: str, experiment: Experiment, labels: Sequence[str]) -> Table:
    """Make the table of all trials: gain, and what was predicted and measured.

    Args:
        caption: of the table.
        experiment: with the trials.
        labels: of the trials.
    """
    any_measured = bool(measured(experiment.trials))
    any_kl = any(trial.kl is not None and trial.kl.measured for trial in experiment.trials)
    predicted_kl = any(trial.predicted_kl is not None for trial in experiment.trials)
    rows = tuple(
        (
            label,
            str(len(trial.quantized)),
            *_gain(trial, experiment),
            _number(trial.predicted),
            "–" if trial.interval is None else span(trial.interval, ".2e"),
            *(_measured(trial) if any_measured else ()),
            *(_kl(trial.kl) if any_kl else ()),
            *((_number(trial.predicted_kl),) if predicted_kl else ()),
        )
        for label, trial in zip(labels, experiment.trials, strict=True)
    )
    columns: tuple[str, ...] = ("plan", "ops", "gain", "%", "loss MSE, predicted", "interval")
    columns += ("measured", "ratio") if any_measured else ()
    columns += ("KL, predicted", "measured") if any_kl else ()
    columns += ("KL, predicted",) if predicted_kl else ()
    return Table(caption, columns, rows)


def _gain(trial: Trial, experiment: Experiment) -> tuple[str, str]:
    if trial.gain is None:
        return "–", "–"
    return amount(trial.gain, experiment.unit), f"{percent(trial.gain, experiment.largest_gain):.1f}"


def _kl(point: KLPoint | None) -> tuple[str, str]:
    if point is None:
        return "–", "–"
    return _number(point.predicted), with_interval(point.measured, point.measured_interval, ".2e")


def _measured(trial: Trial) -> tuple[str, str]:
    if trial.measured is None:
        return "–", "–"
    ratio = f"{trial.predicted / trial.measured:.2f}" if trial.measured and trial.predicted else "–"
    return with_interval(trial.measured, trial.measured_interval, ".2e"), ratio


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2e}"
