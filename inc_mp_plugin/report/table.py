"""Tables for a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

from inc_mp_plugin.plan import Validation
from inc_mp_plugin.report.info import Cell, PlanTable


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
