"""The table of a plan, for a terminal; apart from those of reports, which take longer to load."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from inc_mp_plugin.report.text import Cell, PlanTable

_LEGEND = "% of the loss budget / % of the largest gain (· base)"


def print_plan(table: PlanTable, console: Console) -> None:
    """Print a plan: layers down, ops across, then the ops outside of layers, then the summary."""
    layers = {layer: cells for layer, cells in table.rows.items() if layer}
    if layers:
        columns = [c for c in table.columns if any(c in cells for cells in layers.values())]
        rows = [
            [Text(layer), *(_cell(table, cells.get(column)) for column in columns)]
            for layer, cells in layers.items()
        ]
        title = f"Ops in {' or '.join(table.lower) or 'a lower format'}: {_LEGEND}"
        print_in_full(_drawn(title, ["layer", *columns], rows), console)
    if "" in table.rows:
        rows = [[Text(name), Text(cell.format), _cell(table, cell)] for name, cell in table.rows[""].items()]
        title = "" if layers else _LEGEND
        print_in_full(_drawn(title, ["op", "format", "share"], rows, left=2), console)
    for line in table.summary:
        console.print(line, markup=False, soft_wrap=True)


def print_in_full(table: Table, console: Console) -> None:
    """Print a table with all its columns, whatever the width of the console."""
    # Where the output is no terminal, or a narrow one, long lines serve better than cut columns.
    needed = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    if needed <= console.width:
        console.print(table)
    else:
        Console(file=console.file, width=needed, highlight=False).print(table, soft_wrap=True)


def _drawn(title: str, columns: Sequence[str], rows: Sequence[Sequence[Text]], left: int = 0) -> Table:
    """Make a table whose first `left` columns are words.

    The widths are given, because rich takes most of its time to find them, three times over.
    """
    drawn = Table(title=Text(title) if title else None, title_justify="left")
    for number, column in enumerate(columns):
        width = max(cell_len(text) for text in [column, *(row[number].plain for row in rows)])
        drawn.add_column(Text(column), justify="left" if number < left else "right", width=width)
    for row in rows:
        drawn.add_row(*row)
    return drawn


def _cell(table: PlanTable, cell: Cell | None) -> Text:
    if cell is None:
        return Text()
    if cell.format not in table.lower:
        return Text("·", style="dim")
    name = f"{cell.format} " if len(table.lower) > 1 else ""
    return Text(f"{name}{cell.loss_percent:.1f}/{cell.gain_percent:.1f}", style="green")
