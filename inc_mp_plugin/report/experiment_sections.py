"""Sections on the paper's experiments: which ops strategies choose, and what their plans lose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from inc_mp_plugin.core.experiment import Experiment
from inc_mp_plugin.report.accuracy_section import accuracy_blocks
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Blocks, Section, Strips
from inc_mp_plugin.report.curve_section import curve_blocks
from inc_mp_plugin.report.prediction_section import prediction_blocks
from inc_mp_plugin.report.text import split_name
from inc_mp_plugin.report.trials_table import trials_table


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
    return strips, trials_table(f"The same plans, for {experiment.objective}.", experiment, labels)


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


# Title and blocks of each kind of experiment, in the order of the report.
_KINDS: dict[str, tuple[str, Callable[[Experiment], Blocks]]] = {
    "choices": ("What each strategy lowers", _choices),
    "prediction": ("Predicted against measured loss and KL", prediction_blocks),
    "curve": ("Measured loss at equal gain", curve_blocks),
    "methods": ("Ways to price ops, at equal gain", curve_blocks),
    "accuracy": ("Accuracy on tasks", accuracy_blocks),
}
