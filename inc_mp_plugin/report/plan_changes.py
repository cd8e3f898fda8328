"""Two plans beside each other: the ops that moved, with their prices in both."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from statistics import median

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.explained import Explained
from inc_mp_plugin.report.measured import with_interval
from inc_mp_plugin.report.text import amount, percent, split_name, threshold

_MOST = 20


def both_plans(first: Explained, second: Explained, names: tuple[str, str]) -> Table:
    """Make the table of the key figures of two plans.

    Args:
        first: the plan before.
        second: the plan after.
        names: of both.
    """
    figures = [dict(_figures(case.plan)) for case in (first, second)]
    rows = tuple((key, figures[0].get(key, "-"), figures[1].get(key, "-")) for key in figures[0] | figures[1])
    return Table("", ("plan", *names), rows)


def _figures(plan: Plan) -> Iterator[tuple[str, str]]:
    yield "threshold", threshold(plan)
    yield "ops lowered", f"{len(plan.quantized)} of {len(plan.formats)}"
    yield f"gain, {plan.objective}", amount(plan.gain, plan.unit)
    yield f"{plan.objective}, % of the largest gain", f"{percent(plan.gain, plan.largest_gain):.1f}"
    if plan.predicted_kl is not None:
        yield "predicted KL, nats per token", with_interval(plan.predicted_kl, plan.kl_interval, ".4g")
    if plan.nrmse is not None:
        yield "predicted NRMSE of the loss", f"{plan.nrmse:.4g}"


def moved_ops(first: Explained, second: Explained, names: tuple[str, str]) -> list[Table | str]:
    """Make a table for each direction that ops moved in, and say how their prices compare.

    Args:
        first: the plan before.
        second: the plan after.
        names: of both.
    """
    before, after = first.plan, second.plan
    common = [op for op in before.formats if op in after.formats]
    entered = [op for op in common if second.is_lowered(op) and not first.is_lowered(op)]
    left = [op for op in common if first.is_lowered(op) and not second.is_lowered(op)]
    others = [op for op in common if first.is_lowered(op) and second.is_lowered(op)]
    others = [op for op in others if before.formats[op] != after.formats[op]]
    blocks: list[Table | str] = []
    for caption, ops in (
        (f"Lowered in {names[1]} alone", entered),
        (f"Lowered in {names[0]} alone", left),
        ("Lowered in both, to other formats", others),
    ):
        if ops:
            blocks += _table(first, second, caption, ops)
    if not blocks:
        blocks.append("No op moved.")
    if alone := len(before.formats) + len(after.formats) - 2 * len(common):
        blocks.append(f"{alone} ops are in one of the models alone.")
    return [*blocks, *_prices(first, second, common)]


def _table(first: Explained, second: Explained, caption: str, ops: list[str]) -> list[Table | str]:
    def ratio(case: Explained, op: str) -> str:
        value = case.margins.ratio(op) if op in case.margins.of else math.nan
        return "-" if math.isnan(value) else f"{value:.3g}"

    prices = {op: (first.price(op), second.price(op)) for op in ops}
    ordered = sorted(ops, key=lambda op: (-max(prices[op]), op))
    rows = tuple(
        (op, *(f"{value:.3g}" for value in prices[op]), ratio(first, op), ratio(second, op))
        for op in ordered[:_MOST]
    )
    units = ["KL" if case.plan.constraint == "kl" else "loss MSE" for case in (first, second)]
    columns = ("op", f"price, {units[0]}", f"then, {units[1]}", "gain per price", "then")
    more = Counter(split_name(op)[1] for op in ordered[_MOST:])
    kinds = ", ".join(f"{kind} ({count})" for kind, count in more.most_common())
    rest = [f"And {len(ops) - _MOST} more: {kinds}."] if more else []
    return [Table(f"{caption} ({len(ops)}); a gain per price of 1 is the edge:", columns, rows), *rest]


def _prices(first: Explained, second: Explained, common: list[str]) -> list[str]:
    """Say how the prices of all common ops compare, if they differ."""
    yardstick = second.plan.constraint
    if first.plan.constraint != yardstick or first.lower_format != second.lower_format:
        return []
    before, after = (case.prices[case.lower_format] for case in (first, second))
    ratios = [after[op] / before[op] for op in common if before.get(op) and op in after]
    if not ratios or all(ratio == 1.0 for ratio in ratios):
        return ["All prices are the same."] if ratios else []
    return [
        f"Prices of {len(ratios)} ops, then over before: median {median(ratios):.3g}, "
        f"from {min(ratios):.3g} to {max(ratios):.3g}."
    ]
