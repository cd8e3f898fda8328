"""The experiment's outcome as tables."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from outcome import Outcome, SeedOutcome, spread
from pricing import EQUAL, METHODS
from training import Trial

from inc_mp_plugin.core.plan import ALPS, EAGL
from inc_mp_plugin.qat.layers import SCALED, STATISTICS
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.solver.orders import PREFIX, RANDOM
from inc_mp_plugin.solver.planner import IP_MSE

Number = Callable[[SeedOutcome, Trial], float]
LABELS = {
    IP_MSE: "IP-MSE",
    ALPS: "ALPS",
    EAGL: "EAGL",
    EQUAL: "equal values",
    PREFIX: "first to last",
    RANDOM: "random",
}
_STEPS = {STATISTICS: "anew", SCALED: "scaled"}


def tables(outcome: Outcome) -> tuple[Table, ...]:
    """What the terminal shows."""
    return (
        models_table(outcome),
        accuracy_table(outcome),
        loss_table(outcome),
        recovery_table(outcome),
        sums_table(outcome),
        seconds_table(outcome),
    )


def accuracy_lost(one: SeedOutcome, trial: Trial) -> float:
    """Accuracy of FP32, of the same seed, less that of a trial, in percentage points."""
    return 100.0 * (one.full_precision.accuracy - trial.accuracy)


def loss_added(one: SeedOutcome, trial: Trial) -> float:
    """Cross entropy of a trial less that of FP32 of the same seed, in 0.001 nats."""
    return 1000.0 * (trial.loss - one.full_precision.loss)


def spread_of_full(outcome: Outcome) -> float:
    """Standard deviation of the accuracy of FP32 over seeds, in percentage points."""
    return spread([100.0 * one.full_precision.accuracy for one in outcome.seeds])


def recovered_from(outcome: Outcome, method: str) -> float | None:
    """The least budget from which on the mean accuracy lost is within `spread_of_full`; None if none is."""
    found = None
    for budget in sorted(outcome.budgets, reverse=True):
        if statistics.fmean(outcome.by_seed(method, budget, accuracy_lost)) > spread_of_full(outcome):
            break
        found = budget
    return found


def models_table(outcome: Outcome) -> Table:
    """FP32, all in 4 bits, all in 2 bits."""
    rows = [("FP32", [one.full_precision for one in outcome.seeds])]
    rows.append(("all in 4 bits", [one.base for one in outcome.seeds]))
    for steps in (STATISTICS, SCALED):
        rows.append(
            (f"all in 2 bits, steps {_STEPS[steps]}", [one.everything[steps] for one in outcome.seeds])
        )
    return Table(
        f"Test images, over {len(outcome.seeds)} seeds. First and last op in 8 bits; the steps of ops in 2 "
        "bits start from new statistics, or from those in 4 bits, scaled to span the same range.",
        ("model", "accuracy, %", "cross entropy, nats"),
        tuple(
            (name, pair([100.0 * t.accuracy for t in trials], 2), pair([t.loss for t in trials], 4))
            for name, trials in rows
        ),
    )


def accuracy_table(outcome: Outcome) -> Table:
    """Accuracy lost, by budget and method."""
    return _by_budget(outcome, "accuracy lost against FP32, percentage points", accuracy_lost)


def loss_table(outcome: Outcome) -> Table:
    """Cross entropy added, by budget and method."""
    return _by_budget(outcome, "cross entropy above FP32, 0.001 nats", loss_added)


def recovery_table(outcome: Outcome) -> Table:
    """From which budget on accuracy is that of FP32."""
    found = {method: recovered_from(outcome, method) for method in METHODS}
    return Table(
        "The least budget from which on the mean accuracy lost is within the standard deviation of FP32 over "
        f"seeds, {spread_of_full(outcome):.2f} points.",
        ("method", "budget, %"),
        tuple((LABELS[m], "none" if b is None else f"{100 * b:.0f}") for m, b in found.items()),
    )


def seconds_table(outcome: Outcome) -> Table:
    """What pricing alone costs."""
    rows = []
    for method in METHODS:
        found = [one.seconds.get(method, 0.0) for one in outcome.seeds]
        rows.append((LABELS[method], f"{statistics.fmean(found):.3f}" if any(found) else "none"))
    return Table("Seconds that pricing all ops takes, mean over seeds.", ("method", "s"), tuple(rows))


def sums_table(outcome: Outcome) -> Table:
    """Correlations of predicted and actual losses."""
    rows = [
        (
            str(one.seed),
            str(len(one.sums)),
            f"{one.correlation('loss'):.3f}",
            f"{one.correlation('accuracy'):.3f}",
        )
        for one in outcome.seeds
    ]
    return Table(
        "What ops lose alone, added up, against what random mixes lose: Pearson correlation, on the training "
        "images after the brief fine-tuning.",
        ("seed", "mixes", "cross entropy", "accuracy"),
        tuple(rows),
    )


def pair(values: Sequence[float], digits: int) -> str:
    """Mean ± standard deviation.

    Example:
        >>> pair([1.0, 3.0], 1), pair([1.0], 1)
        ('2.0 ± 1.4', '1.0')
    """
    mean = f"{statistics.fmean(values):.{digits}f}"
    return f"{mean} ± {spread(values):.{digits}f}" if len(values) > 1 else mean


def _by_budget(outcome: Outcome, what: str, of: Number) -> Table:
    """A number at every budget by method, and over all budgets; the least of each row has a star."""
    rows = []
    whole: dict[str, list[list[float]]] = {method: [] for method in METHODS}
    for budget in outcome.budgets:
        found = {method: outcome.by_seed(method, budget, of) for method in METHODS}
        for method in METHODS:
            whole[method].append(found[method])
        rows.append(_row(f"{100 * budget:.0f} %", found))
    means = {m: [statistics.fmean(one) for one in zip(*lists, strict=True)] for m, lists in whole.items()}
    caption = (
        f"Fine-tuned mixes by budget, the compute of all ops in 4 bits being 100 %: {what}, mean ± standard "
        "deviation over seeds; * least."
    )
    columns = ("budget", *(LABELS[method] for method in METHODS))
    return Table(caption, columns, (*rows, _row("mean", means)), left=0, marked=(len(rows),))


def _row(name: str, found: dict[str, list[float]]) -> tuple[str, ...]:
    best = min(statistics.fmean(values) for values in found.values())
    stars = {method: " *" if statistics.fmean(found[method]) == best else "" for method in METHODS}
    return (name, *(pair(found[method], 2) + stars[method] for method in METHODS))
