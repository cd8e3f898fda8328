"""Sections on the paper's experiments: which ops strategies choose, and what their plans lose."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from inc_mp_plugin.core.results import Experiment, Point, Trial
from inc_mp_plugin.report.accuracy_section import accuracy_blocks
from inc_mp_plugin.report.blocks import Block, Chart, Section, Series, Strips, Table
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.loss_sections import against_measured
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.report.plan_sections import missing
from inc_mp_plugin.report.text import amount, split_name
from inc_mp_plugin.report.trials import levels, mean, measured, percent

_LOSS = "loss MSE, measured"
_COMPARED = {
    "curve": "Of several draws the mean, with the least and the largest as a band.",
    "methods": "One program, three prices of an op: its loss MSE (ip_mse), the entropy of its weight (EAGL), "
    "the loss with it alone lowered (ALPS).",
}
_TITLES = {
    "choices": "What each strategy lowers",
    "prediction": "Predicted against measured loss, over thresholds",
    "curve": "Measured loss at equal gain",
    "methods": "Ways to price ops, at equal gain",
    "accuracy": "Accuracy on tasks",
}


def experiments(found: Found) -> tuple[Section, ...]:
    """Make one section per kind of experiment, with every objective that it was made for."""
    return tuple(_section(found, name, title) for name, title in _TITLES.items())


def experiment_blocks(one: Experiment) -> tuple[Block, ...]:
    """Make the charts and tables of an experiment."""
    blocks: dict[str, Callable[[Experiment], tuple[Block, ...]]] = {
        "choices": _choices,
        "prediction": _prediction,
        "curve": _curve,
        "methods": _curve,
        "accuracy": accuracy_blocks,
    }
    return blocks[one.name](one)


def _section(found: Found, name: str, title: str) -> Section:
    shown = [block for one in found.experiments if one.name == name for block in experiment_blocks(one)]
    others = [stem for stem in found.outdated if stem.startswith(f"experiments/{name}-")]
    if not shown and not others:
        others = [f"experiments/{name}"]
    command = f"inc-mp experiment {found.folder} {name}" + (" --task TASK" if name == "accuracy" else "")
    lines = [missing(found, stem, f"Experiment {stem.partition('/')[2]}", command) for stem in others]
    return Section(name, title, (*shown, *lines))


def _choices(one: Experiment) -> tuple[Block, ...]:
    seeds = {trial.strategy: 0 for trial in one.trials}
    for trial in one.trials:
        seeds[trial.strategy] += 1
    labels = [
        f"{trial.strategy} {trial.seed}" if seeds[trial.strategy] > 1 else trial.strategy
        for trial in one.trials
    ]
    ticks: dict[str, int] = {}
    for place, op in enumerate(one.ops):
        ticks.setdefault(split_name(op)[0], place)
    ticks.pop("", None)
    strips = Strips(
        f"choices-{one.objective}",
        f"Which ops does each strategy lower for {one.objective}? Ops in graph order; thick and dark: "
        "lowered, thin and light: base format.",
        "ops, by layer" if ticks else "ops",
        len(one.ops),
        tuple((place, layer) for layer, place in ticks.items()),
        tuple(
            (label, _runs([op in set(trial.quantized) for op in one.ops]))
            for label, trial in zip(labels, one.trials, strict=True)
        ),
    )
    return strips, _trials_table(f"The same plans, for {one.objective}.", one, labels)


def _runs(marks: Iterable[bool]) -> tuple[tuple[int, int], ...]:
    """Find the start and the length of each run of marks.

    Example:
        >>> _runs([True, False, True, True])
        ((0, 1), (2, 2))
    """
    runs: list[tuple[int, int]] = []
    for place, mark in enumerate(marks):
        if mark and runs and sum(runs[-1]) == place:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        elif mark:
            runs.append((place, 1))
    return tuple(runs)


def _trials_table(caption: str, one: Experiment, labels: Sequence[str]) -> Table:
    any_measured = bool(measured(one.trials))
    rows = tuple(
        (
            label,
            str(len(trial.quantized)),
            amount(trial.gain, one.unit),
            f"{percent(one, trial.gain):.1f}",
            f"{trial.predicted:.2e}",
            f"{trial.interval.low:.2e} to {trial.interval.high:.2e}",
            *(_measured(trial) if any_measured else ()),
        )
        for label, trial in zip(labels, one.trials, strict=True)
    )
    columns = ("plan", "ops", "gain", "%", "loss MSE, predicted", "interval")
    return Table(caption, (*columns, *(("measured", "ratio") if any_measured else ())), rows)


def _measured(trial: Trial) -> tuple[str, str]:
    if trial.measured is None:
        return "–", "–"
    ratio = f"{trial.predicted / trial.measured:.2f}" if trial.measured else "–"
    return with_interval(trial.measured, trial.measured_interval, ".2e"), ratio


def _prediction(one: Experiment) -> tuple[Block, ...]:
    points: dict[str, list[Point]] = {}
    for trial in one.trials:
        if trial.measured is not None:
            ends = (trial.interval, trial.measured, trial.measured_interval)
            point = Point(trial.quantized, trial.predicted, *ends)
            points.setdefault(trial.strategy, []).append(point)
    chart = against_measured(
        f"prediction-{one.objective}",
        f"Does the predicted loss MSE of {one.objective} plans come true at every threshold? On "
        f"{one.samples} held-out samples; bars are the intervals of the predictions.",
        [(strategy, strategy, listed) for strategy, listed in points.items()],
    )
    labels = [f"{trial.strategy}, {100 * trial.level:.0f} %" for trial in one.trials]
    caption = (
        "By threshold, in % of the NRMSE of everything in the lower format; ratio: predicted / measured."
    )
    return chart, _trials_table(caption, one, labels)


def _curve(one: Experiment) -> tuple[Block, ...]:
    kinds = dict.fromkeys(trial.strategy for trial in one.trials)
    chart = Chart(
        f"{one.name}-{one.objective}",
        f"At equal {one.objective} gain, who loses least? {_COMPARED[one.name]} Measured on {one.samples} "
        "held-out samples. Below: better.",
        "gain, % of the largest",
        _LOSS,
        tuple(_curve_series(one, strategy) for strategy in kinds),
        logarithmic_y=True,
    )
    return chart, _curve_table(one, list(kinds))


def _curve_series(one: Experiment, strategy: str) -> Series:
    grouped = list(levels(one.trials, strategy).values())
    losses = [measured(group) for group in grouped]
    # On a logarithmic axis a loss of 0 has no place.
    kept = [(group, loss) for group, loss in zip(grouped, losses, strict=True) if loss and min(loss) > 0]
    several = any(len(loss) > 1 for _, loss in kept)
    return Series(
        f"{strategy}, mean of draws" if several else strategy,
        strategy,
        tuple(percent(one, mean([trial.gain for trial in group])) for group, _ in kept),
        tuple(mean(loss) for _, loss in kept),
        tuple(min(loss) for _, loss in kept) if several else (),
        tuple(max(loss) for _, loss in kept) if several else (),
        band=several,
    )


def _curve_table(one: Experiment, kinds: Sequence[str]) -> Table:
    grouped = {strategy: levels(one.trials, strategy) for strategy in kinds}
    wanted = sorted({level for by_level in grouped.values() for level in by_level})
    rows = tuple(
        (f"{100 * level:.0f}", *(_spread(measured(grouped[kind].get(level, []))) for kind in kinds))
        for level in wanted
    )
    several = any(len(group) > 1 for by_level in grouped.values() for group in by_level.values())
    spread = "; mean (least to largest)" if several else ""
    caption = f"Measured loss MSE of {one.objective} plans that gain at least so much{spread}."
    return Table(caption, ("gain, %", *kinds), rows, left=0)


def _spread(losses: Sequence[float]) -> str:
    if not losses:
        return "–"
    if len(losses) == 1:
        return f"{losses[0]:.2e}"
    return f"{mean(losses):.2e} ({min(losses):.1e} to {max(losses):.1e})"
