"""The section on predicted against measured loss MSE and KL, over random plans and thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.core.results import KLPoint
from inc_mp_plugin.report.blocks import Blocks, Chart, Table
from inc_mp_plugin.report.trials_table import trials_table
from inc_mp_plugin.report.validation_section import against_measured

_STYLES = {"random": "random_point"}  # of no order, so without a line from one to the next

Points = Sequence[Trial] | Sequence[KLPoint]


def prediction_blocks(experiment: Experiment) -> Blocks:
    """Make a chart of each yardstick that was priced, the table of how well it did, and that of the plans."""
    losses: dict[str, list[Trial]] = {}
    divergences: dict[str, list[KLPoint]] = {}
    for trial in experiment.trials:
        if trial.measured is not None and trial.predicted is not None:
            losses.setdefault(trial.strategy, []).append(trial)
        if trial.kl is not None and trial.kl.predicted is not None:
            divergences.setdefault(trial.strategy, []).append(trial.kl)
    of_loss, of_kl = ("loss MSE", "", losses), ("KL divergence", "-kl", divergences)
    shown = [yardstick for yardstick in (of_loss, of_kl) if yardstick[2]]
    charts = [_come_true(experiment, *yardstick) for yardstick in shown]
    labels = [_label(trial) for trial in experiment.trials]
    caption = (
        "ip_mse: by threshold, in % of the NRMSE of everything in the lower format (or of the root of its "
        "KL); random: by the share of all ops; ratio: predicted / measured."
    )
    return (*charts, _agreement(experiment, shown), trials_table(caption, experiment, labels))


def _label(trial: Trial) -> str:
    return f"{trial.strategy}, {100 * trial.level:.0f} %"


def _come_true(
    experiment: Experiment,
    value: str,
    ending: str,
    points: Mapping[str, Points],
) -> Chart:
    return against_measured(
        f"prediction-{experiment.objective}{ending}",
        f"Does the predicted {value} of {experiment.objective} plans come true at every threshold? On "
        f"{experiment.samples} held-out samples; bars are the intervals of the predictions.",
        [(name, _STYLES.get(name, name), group) for name, group in points.items()],
        value,
    )


def _agreement(experiment: Experiment, shown: Sequence[tuple[str, str, Mapping[str, Points]]]) -> Table:
    rows = tuple(
        (f"{value}, {strategy}", *_cells(points))
        for value, _, by_strategy in shown
        for strategy, points in by_strategy.items()
    )
    caption = (
        f"How well predictions did on {experiment.samples} held-out samples: correlation of the logarithms, "
        "mean predicted / mean measured, standard deviation of the logarithm of predicted / measured, and "
        "plans within their interval."
    )
    return Table(caption, ("plans of", "plans", "correlation", "ratio", "spread", "within"), rows)


def _cells(points: Points) -> tuple[str, ...]:
    pairs = [(point.predicted or 0.0, point.measured or 0.0) for point in points]
    predicted, measured = np.array([pair for pair in pairs if min(pair) > 0]).reshape(-1, 2).T
    known = [point for point in points if point.interval is not None]
    within = f"{sum(point.covered for point in known)} of {len(known)}" if known else "–"
    if len(predicted) < 3:
        return str(len(points)), "–", "–", "–", within
    correlation = np.corrcoef(np.log(predicted), np.log(measured))[0, 1]
    spread = np.std(np.log(predicted / measured), ddof=1)
    ratio = predicted.sum() / measured.sum()
    return str(len(points)), f"{correlation:.4f}", f"{ratio:.3f}", f"{spread:.3f}", within
