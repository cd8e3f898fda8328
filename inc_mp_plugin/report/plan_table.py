"""The table of a plan in a terminal, a file of its own because those of a report take longer to load."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from inc_mp_plugin.report.text import Cell, PlanTable

_LEGEND = "% of the allowance / % of the largest gain (· base)"


def print_plan(table: PlanTable, console: Console) -> None:
    """Print a plan: layers down, ops across, then the ops outside of layers, then the summary."""
    if table.layers:
        rows = [[Text(layer), *(_text(table, cell) for cell in row)] for layer, row in table.layers.items()]
        title = f"Ops in {' or '.join(table.lower) or 'a lower format'}: {_LEGEND}"
        print_rows(title, ["layer", *table.columns], rows, console)
    if table.outside:
        rows = [[Text(cell.column), Text(cell.format), _text(table, cell)] for cell in table.outside]
        title = "" if table.layers else _LEGEND
        print_rows(title, ["op", "format", "share"], rows, console, left=2)
    for line in table.summary:
        console.print(line, markup=False, soft_wrap=True)


def print_rows(
    title: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Text]],
    console: Console,
    *,
    left: int = 0,
    marked: Collection[int] = (),
) -> None:
    """Print a table with all its columns, whatever the width of the console.

    Args:
        title: above the table; none if empty.
        columns: their names.
        rows: one cell per column.
        console: where to print.
        left: number of the first columns that are words; the others are numbers.
        marked: numbers of the rows that stand out.
    """
    table = Table(title=Text(title) if title else None, title_justify="left")
    for number, column in enumerate(columns):
        # Without a width, rich finds it three times over, which takes most of its time.
        width = max(cell_len(text) for text in [column, *(row[number].plain for row in rows)])
        table.add_column(Text(column), justify="left" if number < left else "right", width=width)
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number in marked else None)
    # Where the output is no terminal, or a narrow one, long lines serve better than cut columns.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if needed <= console.width:
        console.print(table)
    else:
        Console(file=console.file, width=needed, highlight=False).print(table, soft_wrap=True)


def _text(table: PlanTable, cell: Cell | None) -> Text:
    if cell is None:
        return Text()
    if not cell.lowered:
        return Text("·", style="dim")
    name = f"{cell.format} " if len(table.lower) > 1 else ""
    return Text(f"{name}{cell.loss_percent:.1f}/{cell.gain_percent:.1f}", style="green")
