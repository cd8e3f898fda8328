"""The output of the commands in a terminal when they are done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.everything import everything_text
from inc_mp_plugin.report.plan_table import print_plan
from inc_mp_plugin.report.staying import staying_lines
from inc_mp_plugin.report.text import plan_table

if TYPE_CHECKING:
    from inc_mp_plugin.core.experiment import Experiment
    from inc_mp_plugin.core.frontier import Frontier
    from inc_mp_plugin.core.timings import TimeValidation
    from inc_mp_plugin.report.blocks import Table

_ROWS = 20  # of a frontier's table


def show_plan(folder: Path, *, validation: bool = True) -> None:
    """Show the plan of a folder, its validation if it was measured, and the cost of no plan at all."""
    run = Run(folder)
    print_plan(plan_table(run.plan, run.free_gains[run.plan.objective], run.as_planned.losses), _console())
    show_blocks(staying_lines(run.stays, run.plan.base))
    for line in run.held_back:
        _console().print(f"{line}.", markup=False, soft_wrap=True)
    if validation and run.validation is not None:
        from inc_mp_plugin.report.measured import measured_text
        from inc_mp_plugin.report.validation_section import validation_tables

        tables = validation_tables(run.validation, run.plan.confidence)
        show_blocks([*tables, measured_text(run.validation, run.plan)])
    show_blocks([everything_text(run.everything, run.plan, run.validation)])


def show_time(validation: TimeValidation) -> None:
    """Show measured times beside the sums of their groups."""
    from inc_mp_plugin.report.time_section import time_tables, time_text

    show_blocks([*time_tables(validation), time_text(validation)])


def show_frontiers(frontiers: Iterable[Frontier]) -> None:
    """Show gain against loss, a table per objective, of as many points as a screen has room for."""
    from inc_mp_plugin.report.loss_sections import frontier_table

    show_blocks(frontier_table(frontier, _ROWS) for frontier in frontiers)


def show_experiment(experiment: Experiment) -> None:
    """Show the tables of an experiment."""
    from inc_mp_plugin.report.blocks import Table
    from inc_mp_plugin.report.experiment_sections import experiment_blocks

    show_blocks(block for block in experiment_blocks(experiment) if isinstance(block, Table))


def show_blocks(blocks: Iterable[Table | str]) -> None:
    """Show tables and sentences, one below the other."""
    from inc_mp_plugin.report.terminal import print_blocks

    print_blocks(blocks, _console())


def _console() -> Console:
    return Console(highlight=False)
