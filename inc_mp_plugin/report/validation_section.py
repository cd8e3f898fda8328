"""The section on what was predicted against what was measured: loss MSE and KL divergence."""

from __future__ import annotations

from collections.abc import Sequence

from inc_mp_plugin.core.experiment import Trial
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import KLPoint, Point, Validation
from inc_mp_plugin.report.artefacts import RunArtefacts
from inc_mp_plugin.report.blocks import Block, Blocks, Chart, Series, Table
from inc_mp_plugin.report.measured import measured_text, with_interval
from inc_mp_plugin.report.text import span

Named = tuple[str, str, Sequence[Point] | Sequence[KLPoint] | Sequence[Trial]]


def validation_blocks(run: RunArtefacts) -> Blocks:
    """Make text, charts and tables of predicted against measured loss MSE and KL divergence."""
    validation = run.validation
    if validation is None:
        command = run.how_to("inc-mp validate", "validation=heldout")
        return (run.missing("validation", "Measured losses", command),)
    blocks: list[Block] = [measured_text(validation, run.plan)]
    if validation.log_correlation is not None:
        named = (("random plans", "point", validation.points), ("the plan", "plan", (validation.plan,)))
        blocks.append(against_measured("validation", f"Does the predicted loss MSE {_COME_TRUE}", named))
    each = [point.kl for point in validation.points if point.kl is not None]
    if validation.kl is not None and validation.kl.log_correlation is not None:
        of_plan = [validation.plan.kl] if validation.plan.kl is not None else []
        of_kl = (("random plans", "point", each), ("the plan", "plan", of_plan))
        question = f"Does the predicted KL divergence {_COME_TRUE}"
        blocks.append(against_measured("validation-kl", question, of_kl, f"KL, nats per {each[0].per}"))
    return (*blocks, *validation_tables(validation, run.plan.confidence))


_COME_TRUE = "come true? Bars are the intervals of the predictions; on the line, measured = predicted."


def against_measured(name: str, caption: str, series: Sequence[Named], value: str = "loss MSE") -> Chart:
    """Make the chart of predicted against measured values.

    Both axes are logarithmic, so a point with a value of 0 has no place there and is left out, as is one
    that was not predicted.

    Args:
        name: of the chart's files.
        caption: the question that the chart answers.
        series: label, style (one of `plots.STYLES`) and points of each.
        value: name of the values.
    """
    drawn = []
    for label, style, points in series:
        placed = [
            (point.predicted, point.measured, point.interval or Interval(point.predicted, point.predicted))
            for point in points
            if point.predicted is not None and point.measured and point.predicted > 0
        ]
        drawn.append(
            Series(
                label,
                style,
                tuple(predicted for predicted, _, _ in placed),
                tuple(measured for _, measured, _ in placed),
                x_low=tuple(interval.low for _, _, interval in placed),
                x_high=tuple(interval.high for _, _, interval in placed),
            )
        )
    values = [number for points in drawn for number in (*points.x, *points.y)]
    if values:
        ends = (min(values), max(values))
        drawn.insert(0, Series("measured = predicted", "reference", ends, ends))
    labels = (f"{value}, predicted", f"{value}, measured")
    return Chart(name, caption, *labels, tuple(drawn), logarithmic_x=True, logarithmic_y=True)


def validation_tables(validation: Validation, confidence: float) -> tuple[Table, ...]:
    """Make the tables of predicted against measured loss MSE and KL divergence.

    The plan comes first, then the random plans by rising prediction. A loss that was not predicted has no
    table beside that of a KL divergence.

    Args:
        validation: of the plan.
        confidence: level of the predicted intervals.
    """
    predicted = ("predicted", f"{100 * confidence:g} % interval")
    columns = ("ops lowered", *predicted, "measured", "predicted / measured")
    note = (
        f"on {validation.samples} held-out samples; ! is outside of the predicted interval for as many. "
        f"In brackets: {100 * validation.verify_confidence:g} % intervals of what was measured."
    )
    points = (validation.plan, *sorted(validation.points, key=_order))
    names = [f"{'the plan: ' if point is validation.plan else ''}{len(point.quantized)}" for point in points]
    losses = tuple((name, *_cells(point)) for name, point in zip(names, points, strict=True))
    of_loss = Table(f"Loss MSE {note}", columns, losses, left=0, marked=(0,))
    if validation.kl is None:
        return (of_loss,)
    named = [(name, point.kl) for name, point in zip(names, points, strict=True) if point.kl is not None]
    named[1:] = sorted(named[1:], key=lambda pair: _order(pair[1]))
    per = next((point.per for _, point in named if point.measured), "token")
    of_kl = Table(
        f"KL divergence, nats per {per}, {note}",
        (*columns, "99th percentile", "changed, %", "perplexity ×"),
        tuple((name, *_kl_cells(point)) for name, point in named),
        left=0,
        marked=(0,),
    )
    return (of_kl,) if validation.plan.predicted is None else (of_loss, of_kl)


def _order(point: Point | KLPoint) -> tuple[float, float]:
    return point.predicted or 0.0, point.measured


def _cells(point: Point | KLPoint) -> tuple[str, str, str, str]:
    """Format what was predicted and measured."""
    known = point.predicted is not None and point.measured
    outside = point.interval is not None and not point.covered
    return (
        "–" if point.predicted is None else f"{point.predicted:.3e}",
        "–" if point.interval is None else span(point.interval, ".2e"),
        with_interval(point.measured, point.measured_interval, ".2e") + (" !" if outside else ""),
        f"{(point.predicted or 0.0) / point.measured:.2f}" if known else "–",
    )


def _kl_cells(point: KLPoint) -> tuple[str, ...]:
    perplexity = "–" if point.perplexity_ratio is None else f"{point.perplexity_ratio:.4f}"
    return (*_cells(point), f"{point.p99:.2e}", f"{100 * point.flips:.2f}", perplexity)
