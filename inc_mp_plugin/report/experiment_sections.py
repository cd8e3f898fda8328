"""Sections on the paper's experiments: which ops strategies choose, and what their plans lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from inc_mp_plugin.core.results import Experiment, KLPoint, Point, Trial
from inc_mp_plugin.report.accuracy_section import accuracy_blocks
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Blocks, Chart, Section, Strips, Table
from inc_mp_plugin.report.curve_section import curve_blocks
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.report.text import amount, percent, span, split_name
from inc_mp_plugin.report.trials import measured
from inc_mp_plugin.report.validation_section import against_measured


def experiment_sections(run: RunArtefacts) -> tuple[Section, ...]:
    """Make one section per kind of experiment, with every objective that it was made for."""
    return tuple(Section(name, title, _blocks(run, name)) for name, (title, _) in _KINDS.items())


def experiment_blocks(experiment: Experiment) -> Blocks:
    """Make the charts and tables of an experiment."""
    return _KINDS[experiment.name][1](experiment)


def _blocks(run: RunArtefacts, name: str) -> Blocks:
    experiments = [experiment for experiment in run.experiments if experiment.name == name]
    stems = [stem for stem in run.outdated if stem.startswith(f"experiments/{name}-")]
    if not experiments and not stems:
        stems = [f"experiments/{name}"]
    command = f"inc-mp experiment {run.folder} {name}" + (" --task TASK" if name == "accuracy" else "")
    lines = [run.missing(stem, f"Experiment {stem.partition('/')[2]}", command) for stem in stems]
    return (*(block for experiment in experiments for block in experiment_blocks(experiment)), *lines)


def _choices(experiment: Experiment) -> Blocks:
    seeds = Counter(trial.strategy for trial in experiment.trials)
    labels = [
        f"{trial.strategy} {trial.seed}" if seeds[trial.strategy] > 1 else trial.strategy
        for trial in experiment.trials
    ]
    ticks: dict[str, int] = {}
    for place, op in enumerate(experiment.ops):
        ticks.setdefault(split_name(op)[0], place)
    ticks.pop("", None)
    strips = Strips(
        f"choices-{experiment.objective}",
        f"Which ops does each strategy lower for {experiment.objective}? Ops in graph order; thick and dark: "
        "lowered, thin and light: base format.",
        "ops, by layer" if ticks else "ops",
        len(experiment.ops),
        tuple((place, layer) for layer, place in ticks.items()),
        tuple(
            (label, _runs(map(set(trial.quantized).__contains__, experiment.ops)))
            for label, trial in zip(labels, experiment.trials, strict=True)
        ),
    )
    return strips, _trials_table(f"The same plans, for {experiment.objective}.", experiment, labels)


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


def _trials_table(caption: str, experiment: Experiment, labels: Sequence[str]) -> Table:
    any_measured = bool(measured(experiment.trials))
    any_kl = any(trial.kl is not None and trial.kl.measured for trial in experiment.trials)
    rows = tuple(
        (
            label,
            str(len(trial.quantized)),
            amount(trial.gain, experiment.unit),
            f"{percent(trial.gain, experiment.largest_gain):.1f}",
            f"{trial.predicted:.2e}",
            span(trial.interval, ".2e"),
            *(_measured(trial) if any_measured else ()),
            *(_kl(trial.kl) if any_kl else ()),
        )
        for label, trial in zip(labels, experiment.trials, strict=True)
    )
    columns: tuple[str, ...] = ("plan", "ops", "gain", "%", "loss MSE, predicted", "interval")
    columns += ("measured", "ratio") if any_measured else ()
    columns += ("KL, predicted", "measured") if any_kl else ()
    return Table(caption, columns, rows)


def _kl(point: KLPoint | None) -> tuple[str, str]:
    if point is None:
        return "–", "–"
    predicted = "–" if point.predicted is None else f"{point.predicted:.2e}"
    return predicted, with_interval(point.measured, point.measured_interval, ".2e")


def _measured(trial: Trial) -> tuple[str, str]:
    if trial.measured is None:
        return "–", "–"
    ratio = f"{trial.predicted / trial.measured:.2f}" if trial.measured else "–"
    return with_interval(trial.measured, trial.measured_interval, ".2e"), ratio


def _prediction(experiment: Experiment) -> Blocks:
    of_loss: dict[str, list[Point]] = {}
    of_kl: dict[str, list[KLPoint]] = {}
    for trial in experiment.trials:
        if trial.measured is not None:
            point = Point(trial.quantized, trial.predicted, trial.interval, trial.measured)
            of_loss.setdefault(trial.strategy, []).append(point)
        if trial.kl is not None and trial.kl.predicted is not None:
            of_kl.setdefault(trial.strategy, []).append(trial.kl)
    charts = [_come_true(experiment, "loss MSE", "", of_loss)]
    if of_kl:
        charts.append(_come_true(experiment, "KL divergence", "-kl", of_kl))
    labels = [f"{trial.strategy}, {100 * trial.level:.0f} %" for trial in experiment.trials]
    caption = (
        "By threshold, in % of the NRMSE of everything in the lower format; ratio: predicted / measured."
    )
    return (*charts, _trials_table(caption, experiment, labels))


def _come_true(
    experiment: Experiment,
    value: str,
    ending: str,
    points: Mapping[str, Sequence[Point]] | Mapping[str, Sequence[KLPoint]],
) -> Chart:
    return against_measured(
        f"prediction-{experiment.objective}{ending}",
        f"Does the predicted {value} of {experiment.objective} plans come true at every threshold? On "
        f"{experiment.samples} held-out samples; bars are the intervals of the predictions.",
        [(strategy, strategy, group) for strategy, group in points.items()],
        value,
    )


# Title and blocks of each kind of experiment, in the order of the report.
_KINDS: dict[str, tuple[str, Callable[[Experiment], Blocks]]] = {
    "choices": ("What each strategy lowers", _choices),
    "prediction": ("Predicted against measured loss, over thresholds", _prediction),
    "curve": ("Measured loss at equal gain", curve_blocks),
    "methods": ("Ways to price ops, at equal gain", curve_blocks),
    "accuracy": ("Accuracy on tasks", accuracy_blocks),
}
