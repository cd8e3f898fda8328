"""Tables and sentences of a report, for a terminal."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from inc_mp_plugin.report.blocks import Table
from inc_mp_plugin.report.plan_table import print_rows


def print_table(table: Table, console: Console) -> None:
    """Print a table of a report."""
    rows = [[Text(text) for text in row] for row in table.rows]
    print_rows(table.caption, table.columns, rows, console, left=table.left, marked=table.marked)


def print_blocks(blocks: Iterable[Table | str], console: Console) -> None:
    """Print tables and sentences of a report, one below the other."""
    for block in blocks:
        if isinstance(block, Table):
            print_table(block, console)
        else:
            console.print(block, markup=False, soft_wrap=True)
