"""Tables of a report, for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Frontier, Validation
from inc_mp_plugin.core.timings import TimeValidation
from inc_mp_plugin.report.blocks import Table as Words
from inc_mp_plugin.report.loss_sections import frontier_table, validation_table
from inc_mp_plugin.report.measured import measured_text
from inc_mp_plugin.report.plan_table import print_in_full
from inc_mp_plugin.report.text import FrontierRow
from inc_mp_plugin.report.time_section import time_tables, time_text


def print_table(table: Words, console: Console) -> None:
    """Print a table of a report."""
    drawn = Table(title=Text(table.caption), title_justify="left")
    for number, column in enumerate(table.columns):
        drawn.add_column(Text(column), justify="left" if number < table.left else "right")
    for number, row in enumerate(table.rows):
        drawn.add_row(*map(Text, row), style="bold" if number in table.marked else None)
    print_in_full(drawn, console)


def print_validation(
    validation: Validation, confidence: float, console: Console, plan: Plan | None = None
) -> None:
    """Print predicted against measured loss MSE, then `measured_text`.

    The plan comes first, then the random plans by rising prediction.

    Args:
        validation: what was measured.
        confidence: of the predicted intervals, from 0 to 1.
        console: where to print.
        plan: that was measured; see `measured_text`.
    """
    print_table(validation_table(validation, confidence), console)
    console.print(measured_text(validation, plan), markup=False, soft_wrap=True)


def print_frontier(one: Frontier, rows: Sequence[FrontierRow], console: Console) -> None:
    """Print gain against loss: the exact curve, and what the baselines pay for as much gain.

    Args:
        one: the frontier.
        rows: its points that are shown.
        console: where to print.
    """
    print_table(frontier_table(one, rows), console)


def print_time_validation(validation: TimeValidation, console: Console) -> None:
    """Print measured plans beside the sums of their groups, then groups beside the sums of their ops."""
    for table in time_tables(validation):
        print_table(table, console)
    console.print(time_text(validation), markup=False, soft_wrap=True)
