"""Accuracy on tasks: one chart per score, and the table of the paper."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from inc_mp_plugin.core.experiment import Experiment
from inc_mp_plugin.report.answers_section import answer_blocks
from inc_mp_plugin.report.blocks import Blocks, Chart, Series, Table
from inc_mp_plugin.report.trials import (
    deviation,
    differences,
    levels,
    mean_gain,
    measured_kl,
    strategies,
)


def accuracy_blocks(experiment: Experiment) -> Blocks:
    """Make the charts of each score's difference to the base format, and the tables.

    One table has the averages of the differences in %, the other the scores in the base format.
    """
    metrics = [metric for metric, base in experiment.base_scores.items() if base]
    text = (
        f"Scores of {experiment.objective} plans, as differences to the base format in % of its score, over "
        "seeds that perturb the scales before quantization."
    )
    scores = tuple((metric, f"{score:.4g}") for metric, score in experiment.base_scores.items())
    base_table = Table("Scores in the base format.", ("score", "value"), scores)
    charts = [_chart(experiment, metric) for metric in metrics]
    tables = (_table(experiment, metrics), *_beside_kl(experiment, metrics), base_table)
    return (text, *charts, *tables, *answer_blocks(experiment))


def _chart(experiment: Experiment, metric: str) -> Chart:
    better = "Below: better." if _is_perplexity(metric) else "Above: better."
    lines = tuple(_series(experiment, metric, strategy) for strategy in strategies(experiment))
    end = max([100.0, *(x for line in lines for x in line.x)])
    return Chart(
        f"accuracy-{experiment.objective}-{_file_name(metric)}",
        f"What does {metric} lose at each gain? Mean and standard deviation over seeds. {better}",
        "gain, % of the largest",
        "difference to the base format, %",
        (Series("base format", "reference", (0.0, end), (0.0, 0.0)), *lines),
    )


def _series(experiment: Experiment, metric: str, strategy: str) -> Series:
    points = [
        (mean_gain(experiment, group), fmean(values), deviation(values))
        for group in levels(experiment, strategy).values()
        if (values := differences(experiment, group, metric))
    ]
    return Series(
        strategy,
        strategy,
        tuple(gain for gain, _, _ in points),
        tuple(middle for _, middle, _ in points),
        tuple(middle - half for _, middle, half in points),
        tuple(middle + half for _, middle, half in points),
    )


def _table(experiment: Experiment, metrics: Sequence[str]) -> Table:
    rows = []
    for strategy in strategies(experiment):
        trials = [trial for trial in experiment.trials if trial.strategy == strategy]
        by_metric = {metric: differences(experiment, trials, metric) for metric in metrics}
        averages = {m: (fmean(values), deviation(values)) for m, values in by_metric.items() if values}
        accuracies = [average for metric, average in averages.items() if not _is_perplexity(metric)]
        whole = (fmean([a for a, _ in accuracies]), fmean([b for _, b in accuracies])) if accuracies else None
        rows.append((strategy, *(_pair(averages.get(metric)) for metric in metrics), _pair(whole)))
    caption = (
        "Difference to the base format in %: mean ± standard deviation over all levels and seeds; the last "
        "column is the mean over all scores but perplexities."
    )
    return Table(caption, ("strategy", *metrics, "mean"), tuple(rows))


def _beside_kl(experiment: Experiment, metrics: Sequence[str]) -> tuple[Table, ...]:
    """Make the table of scores beside the measured KL divergence of the same plans, if it was measured."""
    if not measured_kl(experiment.trials):
        return ()
    rows = []
    for strategy in strategies(experiment):
        for level, trials in levels(experiment, strategy).items():
            changes = (differences(experiment, trials, metric) for metric in metrics)
            pairs = [_pair((fmean(each), deviation(each)) if each else None) for each in changes]
            divergences = measured_kl(trials)
            kl = f"{fmean(divergences):.2e}" if divergences else "–"
            gain = f"{mean_gain(experiment, trials):.1f}"
            rows.append((f"{strategy}, {100 * level:.0f} %", gain, kl, *pairs))
    per = next(trial.kl.per for trial in experiment.trials if trial.kl is not None)
    caption = (
        f"The same plans by their measured KL divergence, nats per {per}, under INC's own scales: a score "
        "counts right answers, KL every word. By the gain that was asked for, in % of the largest."
    )
    return (Table(caption, ("plan", "gain, %", "KL", *metrics), tuple(rows)),)


def _pair(average: tuple[float, float] | None) -> str:
    return "–" if average is None else f"{average[0]:+.3f} ± {average[1]:.2f}"


def _is_perplexity(metric: str) -> bool:
    """Tell if less of a score is better."""
    return "perplexity" in metric or metric.endswith(("/bits_per_byte", "/ppl"))


def _file_name(metric: str) -> str:
    """Turn a metric's name into one for a file: all but letters, digits, - and _ becomes -."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in metric)
