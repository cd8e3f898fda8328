"""`inc-mp tune`: every stage of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.cli.app import AllowCode, Overrides
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.packages import need
from inc_mp_plugin.runtime.progress import tell


def tune(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe.")],
    overrides: Overrides = None,
    *,
    out: Annotated[Path | None, typer.Option(help="Folder; runs/<recipe> if not given.")] = None,
    every_group: Annotated[
        bool, typer.Option("--every-group", help="Time groups of the same structure one by one.")
    ] = False,
    allow_code: AllowCode = False,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Without weights: graph, ties, modelled gains, and files for the largest."
        ),
    ] = False,
) -> None:
    """Run every stage of a recipe; a second call reuses what is done and still valid."""
    need("torch", "neural_compressor", "transformers")  # now, not after minutes of work
    from inc_mp_plugin.cli.show import show_plan
    from inc_mp_plugin.pipeline import tune as pipeline
    from inc_mp_plugin.pipeline.places import refuse_missing_data
    from inc_mp_plugin.pipeline.recipe import load_recipe
    from inc_mp_plugin.runtime import ranks

    changes = [*(overrides or []), *(["timing.every_group=true"] if every_group else [])]
    if dry_run:
        from inc_mp_plugin.pipeline.effort import effort_lines
        from inc_mp_plugin.pipeline.resolve import job_of
        from inc_mp_plugin.report.dry_run import dry_run_lines

        folder = out or Path("runs") / f"{recipe.stem}-dry-run"
        with locked(folder):
            content = load_recipe(recipe, changes)
            outcome = pipeline.dry_run(content, folder)
        lines = dry_run_lines(outcome.graph, outcome.demands, outcome.gains, outcome.plan)
        for line in [*lines, *effort_lines(content, job_of(content), outcome.graph)]:
            typer.echo(line)
        return
    folder = out or Path("runs") / recipe.stem
    content = load_recipe(recipe, changes)
    refuse_missing_data(content, recipe.parent)
    with ranks.joined():
        pipeline.tune_recipe(content, folder, allow_code=allow_code)
        if ranks.rank() == 0:
            show_plan(folder)
            tell(f"Everything is in {folder}.")
