"""Sections on the loss: gain against it, predicted against measured, and the closed loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean

from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Curve, Frontier, Point, Validation, Verification, verdict
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Block, Blocks, Chart, Series, Table, Values
from inc_mp_plugin.report.measured import measured_text, with_interval
from inc_mp_plugin.report.text import amount, percent, span

_GAIN = "gain, % of the largest"


def frontier_blocks(run: RunArtefacts) -> Blocks:
    """Make the charts and tables of gain against loss, per objective."""
    if not run.frontiers:
        return (run.missing("frontier", "The frontier", f"inc-mp frontier {run.folder}"),)
    blocks: list[Block] = []
    for frontier in run.frontiers.values():
        gains = run.gains.get(frontier.objective)
        total = gains.total(run.plan.formats) if gains else None
        chart = _frontier_chart(frontier, run.plan, total[0] if total else None)
        blocks += [chart, frontier_table(frontier)]
    return tuple(blocks)


def _frontier_chart(frontier: Frontier, plan: Plan, gain: float | None) -> Chart:
    exact, largest, nrmse = frontier.curves[0], frontier.largest_gain, frontier.nrmse
    knee = percent(exact.gain[frontier.knee], largest), nrmse(exact.loss_mse[frontier.knee])
    lower, upper = tuple(map(nrmse, exact.low)), tuple(map(nrmse, exact.high))
    label = f"{exact.strategy}, with its interval"
    series = [
        *_draws(frontier, "random"),
        *_draws(frontier, "prefix"),
        Series(label, exact.strategy, *_curve(frontier, exact), lower, upper, band=True),
        Series("knee", "knee", knee[:1], knee[1:]),
    ]
    if gain is not None:
        series.append(Series("the plan", "plan", (percent(gain, largest),), (plan.nrmse,)))
    return Chart(
        f"frontier-{frontier.objective}",
        f"What does each share of the {frontier.objective} gain ({frontier.source}, at most "
        f"{amount(largest, frontier.unit)}) cost in loss? Below: better.",
        _GAIN,
        "NRMSE of the loss, predicted",
        tuple(series),
    )


def _draws(frontier: Frontier, strategy: str) -> Iterator[Series]:
    for number, curve in enumerate(curve for curve in frontier.curves[1:] if curve.strategy == strategy):
        yield Series("" if number else strategy, f"{strategy}_curve", *_curve(frontier, curve))


def _curve(frontier: Frontier, curve: Curve) -> tuple[Values, Values]:
    gains = tuple(percent(gain, frontier.largest_gain) for gain in curve.gain)
    return gains, tuple(map(frontier.nrmse, curve.loss_mse))


def frontier_table(frontier: Frontier) -> Table:
    """Make the table of the exact curve, and of the losses of the baselines that gain at least as much.

    The losses are normalized RMSEs; that of `random` is the root of the draws' mean loss MSE.
    """
    exact, nrmse = frontier.curves[0], frontier.nrmse
    rows = []
    for k, (gain, loss_mse) in enumerate(zip(exact.gain, exact.loss_mse, strict=True)):
        share = f"{percent(gain, frontier.largest_gain):.1f}{' knee' if k == frontier.knee else ''}"
        ends = span((nrmse(exact.low[k]), nrmse(exact.high[k])))
        others = [_mean_nrmse(frontier, strategy, gain) for strategy in ("prefix", "random")]
        row = (amount(gain, frontier.unit), share, str(exact.ops[k]), f"{nrmse(loss_mse):.3g}", ends)
        rows.append((*row, *others, rounded_up(nrmse(loss_mse))))
    return Table(
        f"{frontier.objective} ({frontier.source}), of {amount(frontier.largest_gain, frontier.unit)}: NRMSE "
        "of the loss. The knee stands out; `tau=` gives a plan to `inc-mp solve`.",
        ("gain", "%", "ops", "ip_mse", "its interval", "prefix", "random, mean", "tau="),
        tuple(rows),
        marked=(frontier.knee,),
    )


def _mean_nrmse(frontier: Frontier, strategy: str, gain: float) -> str:
    """Format the NRMSE of the mean loss MSE of a strategy's draws, each for at least this gain.

    Where a draw never gains as much, or there is no draw, the result is a dash.
    """
    losses = [curve.least_loss(gain) for curve in frontier.curves if curve.strategy == strategy]
    reached = [loss for loss in losses if loss is not None]
    if not reached or len(reached) < len(losses):
        return "–"
    return f"{frontier.nrmse(fmean(reached)):.3g}"


def validation_blocks(run: RunArtefacts) -> Blocks:
    """Make the text, the chart and the table of predicted against measured loss MSE."""
    validation = run.validation
    if validation is None:
        command = run.how_to("inc-mp validate", "validation=heldout")
        return (run.missing("validation", "Measured losses", command),)
    chart = against_measured(
        "validation",
        "Does the predicted loss MSE come true? Bars are the intervals of the predictions; on the line, "
        "measured = predicted.",
        (("random plans", "point", validation.points), ("the plan", "plan", (validation.plan,))),
    )
    table = validation_table(validation, run.plan.confidence)
    return measured_text(validation, run.plan), chart, table


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
        positive = [point for point in points if point.predicted > 0 and point.measured > 0]
        drawn.append(
            Series(
                label,
                style,
                tuple(point.predicted for point in positive),
                tuple(point.measured for point in positive),
                x_low=tuple(point.interval.low for point in positive),
                x_high=tuple(point.interval.high for point in positive),
            )
        )
    values = [value for points in drawn for value in (*points.x, *points.y)]
    if values:
        ends = (min(values), max(values))
        drawn.insert(0, Series("measured = predicted", "reference", ends, ends))
    labels = ("loss MSE, predicted", "loss MSE, measured")
    return Chart(name, caption, *labels, tuple(drawn), logarithmic_x=True, logarithmic_y=True)


def validation_table(validation: Validation, confidence: float) -> Table:
    """Make the table of predicted against measured loss MSE.

    The plan comes first, then the random plans by rising prediction.
    """
    points = (validation.plan, *sorted(validation.points, key=lambda point: point.predicted))
    return Table(
        f"Loss MSE on {validation.samples} held-out samples; ! is outside of the interval that was predicted "
        f"for as many. In brackets: {100 * validation.verify_confidence:g} % intervals of what was measured.",
        ("ops lowered", "predicted", f"{100 * confidence:g} % interval", "measured", "predicted / measured"),
        tuple(
            (
                f"{'the plan: ' if point is validation.plan else ''}{len(point.quantized)}",
                f"{point.predicted:.3e}",
                span(point.interval, ".2e"),
                with_interval(point.measured, point.measured_interval, ".2e")
                + ("" if point.covered else " !"),
                f"{point.predicted / point.measured:.2f}" if point.measured else "–",
            )
            for point in points
        ),
        left=0,
        marked=(0,),
    )


def closed_loop_blocks(run: RunArtefacts) -> Blocks:
    """Make text, chart and table of the plans measured from tight to loose, up to the first that fails."""
    loop, plan = run.verification, run.plan
    if loop is None:
        command = run.how_to("inc-mp tune RECIPE.yaml verify=true --out", "validation=heldout, verify=True")
        return (run.missing("verification", "Measured corrections", command),)
    text = (
        f"A plan holds if the upper end of its {100 * loop.verify_confidence:g} % interval is within tau. "
        "Plans are tested from tight to loose, first in wide steps and then in narrow ones, each up to the "
        "first that does not hold. The "
        f"{loop.samples} held-out samples of this section serve no other purpose: what is reported of the "
        "chosen plan is measured on others."
    )
    return text, _loop_chart(loop, plan), _loop_table(loop, plan)


def _loop_chart(loop: Verification, plan: Plan) -> Chart:
    # The plan that lowers nothing is where the search starts; here it would only stretch the axes.
    lowering = [tested for tested in loop.rounds if tested.ops]
    rounds = sorted(lowering, key=lambda tested: (tested.gain, tested.predicted_nrmse))
    x = tuple(percent(tested.gain, plan.largest_gain) for tested in rounds)
    measured = tuple(tested.measured_nrmse for tested in rounds)
    ends = [tested.interval or (tested.measured_nrmse, tested.measured_nrmse) for tested in rounds]
    lower, upper = tuple(bottom for bottom, _ in ends), tuple(top for _, top in ends)
    choice = loop.rounds[loop.chosen]
    at_choice = (percent(choice.gain, plan.largest_gain),)
    return Chart(
        "closed-loop",
        f"How far can the loss budget be stretched until the interval of the loss measured on {loop.samples} "
        "held-out samples reaches tau?",
        _GAIN,
        "NRMSE of the loss",
        (
            Series("tau", "limit", (min(x, default=0.0), max(x, default=100.0)), (loop.tau, loop.tau)),
            Series("predicted", "predicted", x, tuple(tested.predicted_nrmse for tested in rounds)),
            Series("measured, with its interval", "measured", x, measured, lower, upper),
            Series("chosen", "plan", at_choice, (choice.measured_nrmse,)),
        ),
    )


def _loop_table(loop: Verification, plan: Plan) -> Table:
    return Table(
        f"Plans in the order they were measured, tau {loop.tau:.6g}; the chosen one stands out. "
        "The correction multiplies the loss budget.",
        ("correction", "ops", "gain", "%", "predicted", "measured", "interval", "tau"),
        tuple(
            (
                f"{tested.correction:.4g}",
                str(tested.ops),
                amount(tested.gain, plan.unit),
                f"{percent(tested.gain, plan.largest_gain):.1f}",
                f"{tested.predicted_nrmse:.3g}",
                f"{tested.measured_nrmse:.3g}",
                span(tested.interval) if tested.interval else "–",
                verdict(tested.interval, loop.tau),
            )
            for tested in loop.rounds
        ),
        left=0,
        marked=(loop.chosen,),
    )
