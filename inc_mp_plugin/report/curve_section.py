"""Experiments at equal gain: a chart and a table for each yardstick that was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from inc_mp_plugin.core.experiment import Experiment, Trial
from inc_mp_plugin.report.blocks import Blocks, Chart, Series, Table
from inc_mp_plugin.report.trials import levels, mean_gain, measured, measured_kl, strategies

_COMPARED = {
    "curve": "Of several draws the mean, with the least and the largest as a band.",
    "methods": "One program, three prices of an op: ours (ip_mse), the entropy of its weight (EAGL), the "
    "loss with it alone lowered (ALPS); beside plans of no program.",
}


@dataclass(frozen=True, slots=True)
class _Measure:
    """A yardstick: its name, the ending of its charts' files, and the measured values of trials."""

    name: str
    ending: str
    values: Callable[[Iterable[Trial]], list[float]]


def curve_blocks(experiment: Experiment) -> Blocks:
    """Make the charts and tables of the loss MSE and, if it was measured, the KL divergence."""
    per = next((trial.kl.per for trial in experiment.trials if trial.kl is not None), "token")
    measures = (
        _Measure("loss MSE", "", measured),
        _Measure(f"KL divergence, nats per {per}", "-kl", measured_kl),
    )
    shown = [measure for measure in measures if measure.values(experiment.trials)]
    return tuple(block for measure in shown for block in _blocks(experiment, measure))


def _blocks(experiment: Experiment, measure: _Measure) -> tuple[Chart, Table]:
    chart = Chart(
        f"{experiment.name}-{experiment.objective}{measure.ending}",
        f"At equal {experiment.objective} gain, who loses least? {_COMPARED[experiment.name]} Measured on "
        f"{experiment.samples} held-out samples. Below: better.",
        "gain, % of the largest",
        f"{measure.name}, measured",
        tuple(_series(experiment, measure, strategy) for strategy in strategies(experiment)),
        logarithmic_y=True,
    )
    return chart, _table(experiment, measure)


def _series(experiment: Experiment, measure: _Measure, strategy: str) -> Series:
    groups = [(group, measure.values(group)) for group in levels(experiment, strategy).values()]
    # On a logarithmic axis a value of 0 has no place.
    points = [(mean_gain(experiment, group), each) for group, each in groups if each and min(each) > 0]
    several = any(len(each) > 1 for _, each in points)
    return Series(
        f"{strategy}, mean of draws" if several else strategy,
        strategy,
        tuple(gain for gain, _ in points),
        tuple(fmean(each) for _, each in points),
        tuple(min(each) for _, each in points) if several else (),
        tuple(max(each) for _, each in points) if several else (),
        band=several,
    )


def _table(experiment: Experiment, measure: _Measure) -> Table:
    groups = {strategy: levels(experiment, strategy) for strategy in strategies(experiment)}
    rows = tuple(
        (f"{100 * level:.0f}", *(_spread(measure.values(group.get(level, []))) for group in groups.values()))
        for level in sorted({trial.level for trial in experiment.trials})
    )
    several = any(len(trials) > 1 for group in groups.values() for trials in group.values())
    spread = "; mean (least to largest)" if several else ""
    caption = f"Measured {measure.name}, of {experiment.objective} plans that gain at least so much{spread}."
    return Table(caption, ("gain, %", *groups), rows, left=0)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    if len(values) == 1:
        return f"{values[0]:.2e}"
    return f"{fmean(values):.2e} ({min(values):.1e} to {max(values):.1e})"
