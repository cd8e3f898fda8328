"""What the commands show in a terminal when they are done."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.plan_table import print_plan
from inc_mp_plugin.report.text import frontier_rows, plan_table

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Experiment, Frontier
    from inc_mp_plugin.core.timings import TimeValidation


def show_plan(folder: Path, *, validation: bool = True) -> None:
    """Show the plan of a folder and, if it was measured, its validation."""
    run = Run(folder)
    print_plan(plan_table(run.plan, run.free_gains[run.plan.objective], run.planned_losses), _console())
    for line in run.held_back:
        _console().print(f"{line}.", markup=False, soft_wrap=True)
    if validation and run.validation is not None:
        from inc_mp_plugin.report.terminal import print_validation

        print_validation(run.validation, run.plan.confidence, _console(), run.plan)


def show_time(validation: TimeValidation) -> None:
    """Show measured times beside the sums of their groups."""
    from inc_mp_plugin.report.terminal import print_time_validation

    print_time_validation(validation, _console())


def show_frontiers(frontiers: Iterable[Frontier]) -> None:
    """Show gain against loss, a table per objective."""
    from inc_mp_plugin.report.terminal import print_frontier

    for one in frontiers:
        print_frontier(one, frontier_rows(one), _console())


def show_experiment(experiment: Experiment) -> None:
    """Show the tables of an experiment."""
    from inc_mp_plugin.report.blocks import Table
    from inc_mp_plugin.report.experiment_sections import experiment_blocks
    from inc_mp_plugin.report.terminal import print_table

    for block in experiment_blocks(experiment):
        if isinstance(block, Table):
            print_table(block, _console())


def _console() -> Console:
    return Console(highlight=False)
