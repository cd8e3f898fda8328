"""Accuracy on tasks: one chart per score, and the table of the paper."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.results import Experiment
from inc_mp_plugin.report.blocks import Block, Chart, Series, Table
from inc_mp_plugin.report.trials import deviation, differences, levels, mean, percent


def accuracy_blocks(one: Experiment) -> tuple[Block, ...]:
    """Make the charts of each score's difference to the base format, and the tables.

    One table has the averages of the differences in %, the other the scores in the base format.
    """
    metrics = [metric for metric, base in one.base_scores.items() if base]
    kinds = list(dict.fromkeys(trial.strategy for trial in one.trials))
    text = (
        f"Scores of {one.objective} plans, as differences to the base format in % of its score, over seeds "
        "that perturb the scales before quantization."
    )
    charts = [_chart(one, metric, kinds) for metric in metrics]
    return (text, *charts, _table(one, metrics, kinds), _base_table(one))


def _chart(one: Experiment, metric: str, kinds: Sequence[str]) -> Chart:
    better = "Below: better." if _is_perplexity(metric) else "Above: better."
    lines = tuple(_series(one, metric, strategy) for strategy in kinds)
    ends = [x for line in lines for x in line.x]
    zero = Series("base format", "reference", (0.0, max([100.0, *ends])), (0.0, 0.0))
    return Chart(
        f"accuracy-{one.objective}-{_file_name(metric)}",
        f"What does {metric} lose at each gain? Mean and standard deviation over seeds. {better}",
        "gain, % of the largest",
        "difference to the base format, %",
        (zero, *lines),
    )


def _series(one: Experiment, metric: str, strategy: str) -> Series:
    x, y, spread = [], [], []
    for group in levels(one.trials, strategy).values():
        found = differences(one, group, metric)
        if found:
            x.append(percent(one, mean([trial.gain for trial in group])))
            y.append(mean(found))
            spread.append(deviation(found))
    low = tuple(middle - half for middle, half in zip(y, spread, strict=True))
    high = tuple(middle + half for middle, half in zip(y, spread, strict=True))
    return Series(strategy, strategy, tuple(x), tuple(y), low, high)


def _table(one: Experiment, metrics: Sequence[str], kinds: Sequence[str]) -> Table:
    accuracies = [metric for metric in metrics if not _is_perplexity(metric)]
    rows = []
    for strategy in kinds:
        trials = [trial for trial in one.trials if trial.strategy == strategy]
        found = {metric: differences(one, trials, metric) for metric in metrics}
        averages = {m: (mean(values), deviation(values)) for m, values in found.items() if values}
        known = [averages[metric] for metric in accuracies if metric in averages]
        both = (mean([a for a, _ in known]), mean([b for _, b in known])) if known else None
        rows.append((strategy, *(_pair(averages.get(metric)) for metric in metrics), _pair(both)))
    caption = (
        "Difference to the base format in %: mean ± standard deviation over all levels and seeds; the last "
        "column is the mean over all scores but perplexities."
    )
    return Table(caption, ("strategy", *metrics, "mean"), tuple(rows))


def _pair(both: tuple[float, float] | None) -> str:
    return "–" if both is None else f"{both[0]:+.3f} ± {both[1]:.2f}"


def _base_table(one: Experiment) -> Table:
    rows = tuple((metric, f"{score:.4g}") for metric, score in one.base_scores.items())
    return Table("Scores in the base format.", ("score", "value"), rows)


def _is_perplexity(metric: str) -> bool:
    """Tell if less of a score is better."""
    return "perplexity" in metric or metric.endswith(("/bits_per_byte", "/ppl"))


def _file_name(metric: str) -> str:
    """Turn a metric's name into one for a file: all but letters, digits, - and _ becomes -."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in metric)
