"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from inc_mp_plugin.measurements import TimeValidation
from inc_mp_plugin.plan import Plan
from inc_mp_plugin.report.info import Cell, FrontierRow, PlanTable
from inc_mp_plugin.report.loss_sections import frontier_table, validation_table
from inc_mp_plugin.report.measured import measured_text
from inc_mp_plugin.report.page import Table as Words
from inc_mp_plugin.report.time_section import time_tables, time_text
from inc_mp_plugin.results import Frontier, Validation


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


def print_table(table: Words, console: Console) -> None:
    """Print a table of a report."""
    drawn = Table(title=Text(table.caption), title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="left" if number < table.left else "right")
    for number, row in enumerate(table.rows):
        drawn.add_row(*map(Text, row), style="bold" if number in table.marked else None)
    _print(drawn, console)


def print_validation(
    validation: Validation, confidence: float, console: Console, plan: Plan | None = None
) -> None:
    """Print predicted against measured, the plan first, then random plans by size; see `measured_text`."""
    print_table(validation_table(validation, confidence), console)
    console.print(measured_text(validation, plan), markup=False, soft_wrap=True)


def print_frontier(one: Frontier, rows: Sequence[FrontierRow], console: Console) -> None:
    """Print gain against loss: the exact curve, and what the baselines pay for as much gain."""
    print_table(frontier_table(one, rows), console)


def print_time_validation(validation: TimeValidation, console: Console) -> None:
    """Print measured plans beside the sums of their groups, then groups beside the sums of their ops."""
    for table in time_tables(validation):
        print_table(table, console)
    console.print(time_text(validation), markup=False, soft_wrap=True)


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
