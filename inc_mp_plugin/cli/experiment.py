"""`inc-mp experiment`: the experiments of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.cli.app import AllowCode, Folder
from inc_mp_plugin.runtime.progress import tell


def experiment(
    folder: Folder,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="choices, prediction, curve, methods or accuracy.")
    ],
    *,
    objective: Annotated[
        str | None, typer.Option(help="Objective whose gain counts; the plan's if not given.")
    ] = None,
    draws: Annotated[
        int | None,
        typer.Option(help="Random draws (3), random plans (60), or seeds of perturbed scales (2)."),
    ] = None,
    points: Annotated[
        int | None, typer.Option(help="Gains or thresholds to compare at; all if not given.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Held-out samples; those of the recipe if not given.")
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="For accuracy: a task of lm-eval; may be repeated.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(help="For accuracy: a folder with tasks of your own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="For accuracy: documents per task.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer plans, samples and documents; wider intervals.")
    ] = False,
    allow_code: AllowCode = False,
) -> None:
    """Do one of the paper's experiments: plans of every strategy, compared and measured.

    choices: the ops that each lowers (figure 2). prediction: predicted against measured loss and KL
    divergence (figure 3). curve: both, measured at equal gain (figure 4). methods: the same with EAGL and
    ALPS. accuracy: task scores (figures 5, 7 to 9, table 1). Each says first how long it takes; killed, it
    goes on where it stopped.
    """
    from inc_mp_plugin.cli.show import show_experiment
    from inc_mp_plugin.experiments.paper import run_experiment
    from inc_mp_plugin.experiments.settings import Settings, Tasks

    tasks = Tasks(tuple(task or []), include_path, limit)
    settings = Settings(objective, draws, tasks, points, samples, quick=quick, allow_code=allow_code)
    show_experiment(run_experiment(folder, name, settings))
    tell(f"`inc-mp report {folder}` draws it.")
