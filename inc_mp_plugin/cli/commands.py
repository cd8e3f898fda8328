"""`inc-mp`: one short function per command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder, Overrides, app, command, reported
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.progress import tell


@command
def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/<recipe> if not given.")] = None,
    every_group: Annotated[
        bool, typer.Option("--every-group", help="Time groups of the same structure one by one.")
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Without weights: graph, ties, modelled gains, and files for the largest."
        ),
    ] = False,
) -> None:
    """Run every stage of a recipe; a second call reuses what is done and still valid."""
    from inc_mp_plugin.cli.show import show_plan
    from inc_mp_plugin.pipeline import tune as pipeline
    from inc_mp_plugin.pipeline.recipe import load_recipe
    from inc_mp_plugin.runtime import ranks

    changes = [*(overrides or []), *(["timing.every_group=true"] if every_group else [])]
    if dry_run:
        from inc_mp_plugin.pipeline.rehearsal import lines, rehearse

        folder = out or Path("runs") / f"{recipe.stem}-dry-run"
        with locked(folder):
            rehearsal = rehearse(load_recipe(recipe, changes), folder)
        for line in lines(rehearsal):
            typer.echo(line)
        return
    folder = out or Path("runs") / recipe.stem
    with ranks.joined():
        pipeline.tune_recipe(load_recipe(recipe, changes), folder)
        if ranks.rank() == 0:
            show_plan(folder)
            tell(f"Everything is in {folder}.")


@command
def solve(folder: Folder, overrides: Overrides = None) -> None:
    """Write plan.json anew, for another tau, objective or strategy; the model is not needed."""
    from inc_mp_plugin.cli.show import show_plan
    from inc_mp_plugin.pipeline.again import solve_again

    solve_again(folder, overrides or [])
    show_plan(folder, validation=False)


@command
def frontier(
    folder: Folder,
    points: Annotated[int, typer.Option(min=2, help="Points of the exact curve, both ends included.")] = 20,
    draws: Annotated[int, typer.Option(min=0, help="Draws of the random baseline.")] = 10,
) -> None:
    """Show gain against loss for every objective: the exact curve, with the baselines beside it."""
    from inc_mp_plugin.cli.show import show_frontiers
    from inc_mp_plugin.pipeline.again import frontier_again

    show_frontiers(frontier_again(folder, points, draws).values())
    tell(f"Every point is in {folder / 'frontier.json'}.")


@command
def validate(
    folder: Folder,
    time: Annotated[
        bool, typer.Option("--time", help="Measure time instead: plans against the sums of their groups.")
    ] = False,
    tau: Annotated[
        list[float] | None,
        typer.Option(help="With --time, a threshold to plan for; may be repeated."),
    ] = None,
) -> None:
    """Quantize through INC, and compare predicted with measured loss on held-out samples."""
    from inc_mp_plugin.cli.show import show_plan, show_time
    from inc_mp_plugin.pipeline.again import validate_again, validate_time_again

    if time:
        show_time(validate_time_again(folder, tau or []))
        return
    if tau:
        message = "--tau goes with --time; the threshold of the plan itself is set by `inc-mp solve`"
        raise InputError(message)
    validate_again(folder)
    show_plan(folder)


@command
def experiment(
    folder: Folder,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="choices, prediction, curve, methods or accuracy.")
    ],
    objective: Annotated[str | None, typer.Option(help="Whose gain; the plan's if not given.")] = None,
    draws: Annotated[int, typer.Option(help="Random draws, and seeds of perturbed scales.")] = 10,
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
) -> None:
    """Do one of the paper's experiments: plans of every strategy, compared and measured.

    choices: what each lowers (figure 2). prediction: predicted against measured loss (figure 3).
    curve: measured loss at equal gain (figure 4). methods: the same of ip_mse, EAGL and ALPS.
    accuracy: task scores (figures 5, 7 to 9, table 1).
    """
    from inc_mp_plugin.cli.show import show_experiment
    from inc_mp_plugin.experiments.paper import Settings, Tasks, run_experiment

    tasks = Tasks(tuple(task or []), include_path, limit)
    settings = Settings(objective, draws, tasks, points, samples)
    show_experiment(run_experiment(folder, name, settings))
    tell(f"`inc-mp report {folder}` draws it.")


@app.command(
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
    }
)
@reported
def run(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT.py", help="A Python script that uses INC.")],
) -> None:
    """Run an INC script unchanged, with `ip_mse` registered; what follows its name is for the script."""
    from inc_mp_plugin.cli.scripts import run_script

    run_script(script, context.args)


@command
def report(folder: Folder) -> None:
    """Write report.html, one file without network, and figures/ as PNG and SVG."""
    from inc_mp_plugin.pipeline.collect import write_report

    tell(f"{write_report(folder)} is written; open it in a browser.")


@command
def emit(
    folder: Folder,
    target: Annotated[str, typer.Option(help="Consumer of the file, such as optimum-habana.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="kv_cache, attention, reuse_cache; refused if the target runs the plan differently then.",
        ),
    ] = None,
) -> None:
    """Write the INC JSON files of a target, and the commands to run with them.

    Refused unless INC would select exactly the plan, in the modules that the target has.
    """
    from inc_mp_plugin.pipeline.again import emit_again

    script = emit_again(folder, target, overrides or []).with_suffix(".sh")
    if script.exists():
        typer.echo(f"\n{script}:\n\n{script.read_text(encoding='utf-8')}", nl=False)


@command
def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.json", help="An INC FP8 JSON file.")],
    modules: Annotated[
        Path | None, typer.Option(help="JSON with the model's modules, such as DIR/graph.json.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Instead: name or folder of a model.")] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Whose module names and rules count; the model's own names if not given."),
    ] = None,
    kv_cache: Annotated[
        str | None, typer.Option(help="Of the target: bf16 or fp8; not compared if not given.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="Of optimum-habana: eager or flash; not compared if not given.")
    ] = None,
    reuse_cache: Annotated[bool, typer.Option("--reuse-cache", help="Of optimum-habana.")] = False,
    measurements: Annotated[
        Path | None, typer.Option(help="INC's ..._hooks_maxabs.json, which must hold what is selected.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Whose INC table counts, hpu or cpu; the target's if not given.")
    ] = None,
) -> None:
    """Show what INC would select with a file, and what about that is suspicious.

    Patterns that match nothing or too much, lists that cancel each other, everything or nothing selected,
    mixes that the target cannot run. Exit code 2 if there is any.
    """
    from inc_mp_plugin.inc.check.file import Served, check_file
    from inc_mp_plugin.inc.check.measurements import load_captured

    served = Served(kv_cache, attention, reuse_cache)
    report = check_file(config, load_captured(modules, model), target, served, measurements, device)
    for line in report.lines:
        typer.echo(line)
    if report.faults:
        raise InputError("\n".join(report.faults))
    typer.echo("Nothing about the file is suspicious.")


def main() -> None:
    """Run the command line as a process of its own."""
    try:
        app()
    except SystemExit as error:
        if error.code == 1:
            # Python kills itself by SIGINT at its end if Ctrl-C ever left an exec(), even when it was
            # handled; torch.export executes generated code, and the exit code is to be 1.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        raise


if __name__ == "__main__":
    main()
