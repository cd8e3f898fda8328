"""Sections on the loss: gain against it, predicted against measured, and the closed loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Curve, Frontier, Point, Validation, Verification, verdict
from inc_mp_plugin.report.blocks import Block, Chart, Section, Series, Table
from inc_mp_plugin.report.found import Found
from inc_mp_plugin.report.measured import measured_text, with_interval
from inc_mp_plugin.report.plan_sections import missing
from inc_mp_plugin.report.text import FrontierRow, amount, frontier_rows

_GAIN = "gain, % of the largest"


def frontier(found: Found) -> Section:
    """Make the section on gain against loss, per objective."""
    title = "Gain against loss"
    if not found.frontiers:
        command = f"inc-mp frontier {found.folder}"
        return Section("frontier", title, (missing(found, "frontier", "The frontier", command),))
    blocks: list[Block] = []
    for one in found.frontiers.values():
        known = found.gains[one.objective].total(found.plan.formats) if one.objective in found.gains else None
        blocks += [
            _frontier_chart(one, found.plan, None if known is None else known[0]),
            frontier_table(one, frontier_rows(one)),
        ]
    return Section("frontier", title, tuple(blocks))


def _frontier_chart(one: Frontier, plan: Plan, gain: float | None) -> Chart:
    exact = one.curves[0]
    top, level = (exact.gain[one.knee], exact.loss_mse[one.knee]), one.nrmse
    series = [*_draws(one, "random"), *_draws(one, "prefix")]
    x, y = _curve(one, exact)
    low, high = tuple(map(level, exact.low)), tuple(map(level, exact.high))
    series.append(Series(f"{exact.strategy}, with its interval", exact.strategy, x, y, low, high, band=True))
    series.append(Series("knee", "knee", (100.0 * top[0] / one.largest_gain,), (level(top[1]),)))
    if gain is not None:
        series.append(Series("the plan", "plan", (100.0 * gain / one.largest_gain,), (plan.nrmse,)))
    return Chart(
        f"frontier-{one.objective}",
        f"What does each share of the {one.objective} gain ({one.source}, at most "
        f"{amount(one.largest_gain, one.unit)}) cost in loss? Below: better.",
        _GAIN,
        "NRMSE of the loss, predicted",
        tuple(series),
    )


def _draws(one: Frontier, strategy: str) -> Iterator[Series]:
    for number, curve in enumerate(curve for curve in one.curves[1:] if curve.strategy == strategy):
        yield Series("" if number else strategy, f"{strategy}_curve", *_curve(one, curve))


def _curve(one: Frontier, curve: Curve) -> tuple[tuple[float, ...], tuple[float, ...]]:
    percent = tuple(100.0 * gain / one.largest_gain for gain in curve.gain)
    return percent, tuple(map(one.nrmse, curve.loss_mse))


def frontier_table(one: Frontier, rows: Sequence[FrontierRow]) -> Table:
    """Make the table of the exact curve, and of what the baselines pay for as much gain."""
    shown = tuple(
        (
            amount(row.gain, one.unit),
            f"{row.gain_percent:.1f}{' knee' if row.knee else ''}",
            str(row.ops),
            f"{row.nrmse:.3g}",
            f"{row.low:.3g} to {row.high:.3g}",
            "–" if row.prefix is None else f"{row.prefix:.3g}",
            "–" if row.random is None else f"{row.random:.3g}",
            row.tau,
        )
        for row in rows
    )
    return Table(
        f"{one.objective} ({one.source}), of {amount(one.largest_gain, one.unit)}: NRMSE of the loss. The "
        "knee stands out; `tau=` gives a plan to `inc-mp solve`.",
        ("gain", "%", "ops", "ip_mse", "its interval", "prefix", "random, mean", "tau="),
        shown,
        marked=tuple(number for number, row in enumerate(rows) if row.knee),
    )


def validation(found: Found) -> Section:
    """Make the section on predicted against measured loss MSE."""
    title, seen = "Predicted against measured loss", found.validation
    if seen is None:
        command = f"inc-mp validate {found.folder}"
        return Section("validation", title, (missing(found, "validation", "Measured losses", command),))
    table = validation_table(seen, found.plan.confidence)
    return Section("validation", title, (measured_text(seen, found.plan), _validation_chart(seen), table))


def _validation_chart(seen: Validation) -> Chart:
    return against_measured(
        "validation",
        "Does the predicted loss MSE come true? Bars are the intervals of the predictions; on the line, "
        "measured = predicted.",
        (("random plans", "point", seen.points), ("the plan", "plan", (seen.plan,))),
    )


def against_measured(name: str, caption: str, series: Sequence[tuple[str, str, Sequence[Point]]]) -> Chart:
    """Make the chart of predicted against measured loss MSE.

    Both axes are logarithmic, so a point with a loss MSE of 0 has no place there and is left out.

    Args:
        name: of the chart's files.
        caption: the question that the chart answers.
        series: label, style (one of `plots.STYLES`) and points of each.
    """
    drawn = []
    for label, style, points in series:
        kept = [point for point in points if point.predicted > 0 and point.measured > 0]
        drawn.append(
            Series(
                label,
                style,
                tuple(point.predicted for point in kept),
                tuple(point.measured for point in kept),
                x_low=tuple(point.interval.low for point in kept),
                x_high=tuple(point.interval.high for point in kept),
            )
        )
    ends = [value for one in drawn for value in (*one.x, *one.y)]
    if ends:
        line = (min(ends), max(ends))
        drawn.insert(0, Series("measured = predicted", "reference", line, line))
    labels = ("loss MSE, predicted", "loss MSE, measured")
    return Chart(name, caption, *labels, tuple(drawn), logarithmic_x=True, logarithmic_y=True)


def validation_table(seen: Validation, confidence: float) -> Table:
    """Make the table of predicted against measured loss MSE.

    The plan comes first, then the random plans by rising prediction.
    """
    points = (seen.plan, *sorted(seen.points, key=lambda point: point.predicted))
    return Table(
        f"Loss MSE on {seen.samples} held-out samples; ! is outside of the interval that was predicted for "
        f"as many. In brackets: {100 * seen.verify_confidence:g} % intervals of what was measured.",
        (
            "ops lowered",
            "predicted",
            f"{100 * confidence:g} % interval",
            "measured",
            "predicted / measured",
        ),
        tuple(
            (
                f"{'the plan: ' if point is seen.plan else ''}{len(point.quantized)}",
                f"{point.predicted:.3e}",
                f"{point.interval.low:.2e} to {point.interval.high:.2e}",
                f"{with_interval(point.measured, point.measured_interval, '.2e')}"
                f"{'' if point.covered else ' !'}",
                f"{point.predicted / point.measured:.2f}" if point.measured else "–",
            )
            for point in points
        ),
        left=0,
        marked=(0,),
    )


def closed_loop(found: Found) -> Section:
    """Make the section on the plans that were measured, tight to loose, until one no longer held."""
    title, seen = "Closed loop: loosened as long as tau surely holds", found.verification
    if seen is None:
        command = f"inc-mp tune RECIPE.yaml verify=true --out {found.folder}"
        return Section("loop", title, (missing(found, "verification", "Measured corrections", command),))
    text = (
        f"A plan holds if the upper end of its {100 * seen.verify_confidence:g} % interval is within tau. "
        "Plans are tested from tight to loose, first in wide steps and then in narrow ones, each up to the "
        "first that does not hold. The "
        f"{seen.samples} held-out samples of this section serve no other purpose: what is reported of the "
        "chosen plan is measured on others."
    )
    return Section("loop", title, (text, _loop_chart(seen, found.plan), _loop_table(seen, found.plan)))


def _loop_chart(seen: Verification, plan: Plan) -> Chart:
    # The plan that lowers nothing is where the search starts; here it would only stretch the axes.
    tried = [one for one in seen.rounds if one.ops]
    rounds = sorted(tried, key=lambda one: (one.gain, one.predicted_nrmse))
    x = tuple(_percent(one.gain, plan) for one in rounds)
    ends = [one.interval or (one.measured_nrmse, one.measured_nrmse) for one in rounds]
    chosen = seen.rounds[seen.chosen]
    return Chart(
        "closed-loop",
        f"How far can the loss budget be stretched until the interval of the loss measured on {seen.samples} "
        "held-out samples reaches tau?",
        _GAIN,
        "NRMSE of the loss",
        (
            Series("tau", "limit", (min(x, default=0.0), max(x, default=100.0)), (seen.tau, seen.tau)),
            Series("predicted", "predicted", x, tuple(one.predicted_nrmse for one in rounds)),
            Series(
                "measured, with its interval",
                "measured",
                x,
                tuple(one.measured_nrmse for one in rounds),
                tuple(low for low, _ in ends),
                tuple(high for _, high in ends),
            ),
            Series("chosen", "plan", (_percent(chosen.gain, plan),), (chosen.measured_nrmse,)),
        ),
    )


def _loop_table(seen: Verification, plan: Plan) -> Table:
    return Table(
        f"Plans in the order they were measured, tau {seen.tau:.6g}; the chosen one stands out. "
        "The correction multiplies the loss budget.",
        ("correction", "ops", "gain", "%", "predicted", "measured", "interval", "tau"),
        tuple(
            (
                f"{one.correction:.4g}",
                str(one.ops),
                amount(one.gain, plan.unit),
                f"{_percent(one.gain, plan):.1f}",
                f"{one.predicted_nrmse:.3g}",
                f"{one.measured_nrmse:.3g}",
                f"{one.interval.low:.3g} to {one.interval.high:.3g}" if one.interval else "–",
                verdict(one.interval, seen.tau),
            )
            for one in seen.rounds
        ),
        left=0,
        marked=(seen.chosen,),
    )


def _percent(gain: float, plan: Plan) -> float:
    return 100.0 * gain / plan.largest_gain if plan.largest_gain else 0.0
