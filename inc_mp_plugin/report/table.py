"""Tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from inc_mp_plugin.measurements import TimeValidation
from inc_mp_plugin.plan import Validation
from inc_mp_plugin.report.info import Cell, PlanTable, split_name


def print_plan(table: PlanTable, console: Console) -> None:
    """Print a plan: layers down, ops across, then the ops outside of layers, then the summary."""
    layers = {layer: cells for layer, cells in table.rows.items() if layer}
    if layers:
        columns = [c for c in table.columns if any(c in cells for cells in layers.values())]
        drawn = Table(
            title=f"Ops in {' or '.join(table.lower) or 'a lower format'}: {_LEGEND}", title_justify="left"
        )
        drawn.add_column("layer", justify="right")
        for column in columns:
            drawn.add_column(column, justify="right", no_wrap=True)
        for layer, cells in layers.items():
            drawn.add_row(layer, *(_cell(table, cells.get(column)) for column in columns))
        _print(drawn, console)
    if "" in table.rows:
        drawn = Table(title=None if layers else _LEGEND, title_justify="left")
        drawn.add_column("op")
        drawn.add_column("format")
        drawn.add_column("share", justify="right")
        for name, cell in table.rows[""].items():
            drawn.add_row(name, cell.format, _cell(table, cell))
        _print(drawn, console)
    for line in table.summary:
        console.print(line, markup=False, soft_wrap=True)


def print_validation(validation: Validation, console: Console) -> None:
    """Print predicted against measured: the plan first, then the random plans by size."""
    drawn = Table(title=f"Loss MSE on {validation.samples} held-out samples", title_justify="left")
    for column in ("ops quantized", "predicted", "measured", "predicted / measured"):
        drawn.add_column(column, justify="right")
    points = sorted(validation.points, key=lambda point: point.predicted)
    for point in (validation.plan, *points):
        label = f"the plan: {len(point.quantized)}" if point is validation.plan else ""
        ratio = f"{point.predicted / point.measured:.2f}" if point.measured else "-"
        drawn.add_row(
            label or str(len(point.quantized)),
            f"{point.predicted:.3e}",
            f"{point.measured:.3e}",
            ratio,
            end_section=point is validation.plan,
        )
    _print(drawn, console)
    console.print(
        f"Random plans: correlation of the logarithms {validation.log_correlation:.3f}, "
        f"mean predicted / mean measured {validation.ratio:.2f}.\n"
        f"The plan: measured NRMSE {validation.nrmse:.4g}, tau {validation.tau:.6g}"
        + (" (held)." if validation.nrmse <= validation.tau else " (exceeded)."),
        soft_wrap=True,
    )


def print_time_validation(validation: TimeValidation, console: Console) -> None:
    """Print measured plans beside the sums of their groups, then groups beside the sums of their ops."""
    drawn = Table(
        title=f"Time saved by whole plans, of {milliseconds(validation.price_s)} ms on "
        f"{validation.description}",
        title_justify="left",
    )
    drawn.add_column("objective")
    for column in ("tau", "ops", "predicted ms", "measured ms", "difference", "adds up"):
        drawn.add_column(column, justify="right")
    for plan in validation.plans:
        share = f"{100 * plan.difference_s / plan.predicted_s:+.1f} %" if plan.predicted_s else "-"
        drawn.add_row(
            plan.objective,
            f"{plan.tau:.4g}",
            str(len(plan.quantized)),
            _with_error(plan.predicted_s, plan.predicted_stderr_s),
            _with_error(plan.measured_s, plan.measured_stderr_s),
            share,
            ("yes" if plan.additive else "no") if plan.quantized else "-",
        )
    _print(drawn, console)
    if validation.groups:
        drawn = Table(title="Time saved by groups, and by their ops measured alone", title_justify="left")
        drawn.add_column("ops lowered")
        for column in ("measured ms", "sum of ops ms", "million MACs"):
            drawn.add_column(column, justify="right")
        for group in validation.groups:
            drawn.add_row(
                ", ".join(split_name(op)[1] for op in group.quantized),
                _with_error(group.measured_s, group.stderr_s),
                milliseconds(group.sum_of_ops_s),
                f"{group.macs / 1e6:.1f}",
            )
        _print(drawn, console)
    measured = [plan for plan in validation.plans if plan.quantized]
    held = sum(plan.additive for plan in measured)
    console.print(
        f"{held} of {len(measured)} plans save what their groups add up to, within 5 % or two "
        "standard errors.",
        soft_wrap=True,
    )


def milliseconds(seconds: float) -> str:
    """Seconds as milliseconds, to three decimals at most.

    Example:
        >>> milliseconds(0.13421), milliseconds(-0.0000123)
        ('134.2', '-0.012')
    """
    value = 1e3 * seconds
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def _with_error(seconds: float, stderr_s: float) -> str:
    return f"{milliseconds(seconds)} ± {milliseconds(stderr_s)}"


_LEGEND = "% of the loss budget / % of the largest gain (· base)"


def _cell(table: PlanTable, cell: Cell | None) -> str:
    if cell is None:
        return ""
    if cell.format not in table.lower:
        return "[dim]·[/dim]"
    name = f"{cell.format} " if len(table.lower) > 1 else ""
    return f"[green]{name}{cell.loss_percent:.1f}/{cell.gain_percent:.1f}[/green]"


def _print(table: Table, console: Console) -> None:
    # Where the output is no terminal, or a narrow one, long lines serve better than cut columns.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if needed <= console.width:
        console.print(table)
    else:
        Console(file=console.file, width=needed, highlight=False).print(table, soft_wrap=True)
