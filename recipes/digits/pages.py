"""The experiment's outcome as a report."""

from __future__ import annotations

import statistics
from collections.abc import Iterator

from outcome import Outcome
from pricing import EQUAL, METHODS
from tabulated import (
    LABELS,
    Number,
    accuracy_lost,
    accuracy_table,
    loss_added,
    loss_table,
    models_table,
    recovery_table,
    seconds_table,
    spread_of_full,
    sums_table,
)

from inc_mp_plugin.core.plan import ALPS, EAGL
from inc_mp_plugin.report.blocks import Chart, ReportInfo, Section, Series, Strips, Table, Tile, Tiles
from inc_mp_plugin.solver.orders import PREFIX, RANDOM
from inc_mp_plugin.solver.planner import IP_MSE


def report(outcome: Outcome) -> ReportInfo:
    """What report.html says."""
    return ReportInfo(
        "4-bit and 2-bit mixes of a small network",
        f"scikit-learn's digits · LSQ fine-tuning · {len(outcome.seeds)} seeds",
        (
            _headline(outcome),
            Section("models", "What the mixes are between", (models_table(outcome),)),
            _by_budget(outcome),
            Section(
                "additivity", "Do the ops add up?", (_sums_chart(outcome), sums_table(outcome), _ADDITIVITY)
            ),
            _choices(outcome),
            Section("seconds", "What pricing costs", (seconds_table(outcome),)),
            Section("how", "How it was done", _HOW),
        ),
    )


def _headline(outcome: Outcome) -> Section:
    full = [100.0 * one.full_precision.accuracy for one in outcome.seeds]
    whole = statistics.fmean(100.0 * one.base.accuracy for one in outcome.seeds)
    correlations = [one.correlation() for one in outcome.seeds]
    top = max(outcome.budgets)
    lost = {m: statistics.fmean(outcome.by_seed(m, top, accuracy_lost)) for m in (IP_MSE, ALPS, EAGL)}
    best = min(lost, key=lambda method: lost[method])
    limit = spread_of_full(outcome)
    tiles = (
        Tile("FP32", f"{statistics.fmean(full):.2f} %", f"test accuracy, ± {limit:.2f} over seeds"),
        Tile("all in 4 bits", f"{whole:.2f} %", "test accuracy"),
        Tile(
            f"{LABELS[best]} at {100 * top:.0f} % of the compute",
            f"{-lost[best]:+.2f} points",
            "accuracy against FP32 of the same seed",
            "good" if lost[best] <= limit else "",
        ),
        Tile(
            "do the ops add up?",
            f"{statistics.fmean(correlations):.3f}",
            f"correlation, the least {min(correlations):.3f}",
            "good" if min(correlations) >= 0.9 else "",
        ),
    )
    return Section("headline", "What came out", (Tiles(tiles),))


def _by_budget(outcome: Outcome) -> Section:
    accuracy = _chart(
        outcome,
        "accuracy",
        "Which method keeps most accuracy at equal compute? Means over seeds, each against FP32 of the same "
        "seed; dash-dotted: one standard deviation of FP32 over seeds. Above: better.",
        "accuracy against FP32, points",
        lambda one, trial: -accuracy_lost(one, trial),
        -spread_of_full(outcome),
    )
    loss = _chart(
        outcome,
        "cross-entropy",
        "The same mixes in loss, their cross entropy, which tells more finely. Below: better.",
        "loss above FP32, 0.001 nats",
        loss_added,
        0.0,
    )
    tables = (accuracy_table(outcome), loss_table(outcome), recovery_table(outcome))
    return Section("budgets", "Accuracy by budget", (accuracy, loss, *tables))


def _chart(outcome: Outcome, name: str, caption: str, y_label: str, of: Number, limit: float) -> Chart:
    ends = (100.0 * min(outcome.cost(m, b) for m in METHODS for b in outcome.budgets), 100.0)
    lines = [Series("", "reference", ends, (0.0, 0.0))]
    if limit:
        lines.append(Series("", "limit", ends, (limit, limit)))
    for method in (RANDOM, PREFIX, EQUAL, EAGL, ALPS, IP_MSE):
        x = tuple(100.0 * outcome.cost(method, budget) for budget in outcome.budgets)
        y = tuple(statistics.fmean(outcome.by_seed(method, budget, of)) for budget in outcome.budgets)
        lines.append(Series(LABELS[method], method, x, y))
    whole = statistics.fmean(of(one, one.base) for one in outcome.seeds)
    lines.append(Series("all in 4 bits", "knee", (100.0,), (whole,)))
    return Chart(name, caption, "compute, % of all ops in 4 bits", y_label, tuple(lines))


def _sums_chart(outcome: Outcome) -> Chart:
    sums = [one for seed in outcome.seeds for one in seed.sums]
    largest = max(one.predicted_loss for one in sums)
    series = [Series("sum = mix", "reference", (0.0, largest), (0.0, largest))]
    for number, one in enumerate(outcome.seeds):
        x, y = (tuple(getattr(s, f"{what}_loss") for s in one.sums) for what in ("predicted", "actual"))
        series.append(Series(f"seed {one.seed}", _POINTS[number % len(_POINTS)], x, y))
    return Chart(
        "additivity",
        "Do the losses of single ops add up? Random mixes after the brief fine-tuning, training images; "
        f"Pearson correlation {', '.join(f'{one.correlation():.2f}' for one in outcome.seeds)}.",
        "what the ops lose alone, added up, nats",
        "what the mix loses, nats",
        tuple(series),
    )


def _choices(outcome: Outcome) -> Section:
    one = outcome.seeds[0]
    middle = outcome.budgets[len(outcome.budgets) // 2]
    shown = [mix for mix in one.mixes if mix.budget == middle and mix.draw == 0]
    strips = Strips(
        "choices",
        f"Which ops does each method lower for {100 * middle:.0f} % of the compute (seed {one.seed})? Ops in "
        "graph order; thick and dark: 2 bits, thin and light: 4 bits.",
        "ops, by block",
        len(one.ops),
        tuple(_blocks(one.ops)),
        tuple(
            (LABELS[mix.method], tuple((k, 1) for k, op in enumerate(one.ops) if op in mix.lowered))
            for mix in shown
        ),
    )
    prices = Table(
        f"What lowering each op is said to cost (seed {one.seed}).",
        ("op", "IP-MSE, nats²", "ALPS, nats", "EAGL, bits"),
        tuple((op, *(f"{one.prices[m][op]:.3g}" for m in (IP_MSE, ALPS, EAGL))) for op in one.ops),
    )
    return Section("choices", "Which ops each method lowers", (strips, prices))


def _blocks(ops: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Place of the first op of every block, and the block's number."""
    seen: set[str] = set()
    for place, op in enumerate(ops):
        block = op.split(".")[1]
        if block not in seen:
            seen.add(block)
            yield place, block


_POINTS = ("point", "uniform", "knee")
_ADDITIVITY = (
    "A correlation near 1 says that sums rank mixes as they are; above the line, a mix loses more than its "
    "ops do alone."
)
_HOW = (
    "1,000 of the 1,797 images train, moved by up to a pixel; the others test. Accuracies "
    "are of all images as they are and moved by a pixel to each of four sides. Batch norms stay: they take "
    "part in every fine-tuning, and use their running statistics where accuracy is measured.",
    "Weight and input of an op share one format and have a learned step each (LSQ). The first and the last "
    "op stay in 8 bits, and count neither as cost nor as saving. Every mix starts from the 4-bit network, "
    "with steps of its lowered ops from new statistics, and is fine-tuned alike, on the same batches.",
    "IP-MSE prices an op by its first-order loss MSE under the noise D²/12 of the 2-bit steps D; ALPS by the "
    "cross entropy of the training images that it costs alone, after a brief fine-tuning; EAGL by the "
    "entropy of its 4-bit weight codes. With equal values as few ops as possible are lowered, and chance "
    "decides among equals. These four are solved exactly. First to last and random lower op after op until "
    "the budget is met.",
)
