"""`inc-mp check`: an INC file, the user's own included."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.core.errors import InputError


def check(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.json", help="An INC FP8 JSON file.")],
    *,
    modules: Annotated[
        Path | None, typer.Option(help="JSON with the model's modules, such as DIR/graph.json.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Or the model's name or folder.")] = None,
    target: Annotated[
        str | None, typer.Option(help="Consumer of the file; without it, the model's own names and no rules.")
    ] = None,
    kv_cache: Annotated[
        str | None, typer.Option(help="Of the target: bf16 or fp8; not compared if not given.")
    ] = None,
    attention: Annotated[
        str | None, typer.Option(help="Of optimum-habana: eager or flash; not compared if not given.")
    ] = None,
    reuse_cache: Annotated[
        bool, typer.Option("--reuse-cache", help="optimum-habana runs with --reuse_cache.")
    ] = False,
    measurements: Annotated[
        Path | None, typer.Option(help="INC's ..._hooks_maxabs.json; must hold every selected module.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Device whose INC table counts, hpu or cpu; the target's if not given.")
    ] = None,
) -> None:
    """Show the modules that INC would select with a file, and everything suspicious about the selection.

    Patterns that match nothing or too much, lists that cancel each other, a selection of everything or
    nothing, and mixes that the target cannot run are suspicious. Any of these gives exit code 2.
    """
    from inc_mp_plugin.inc.check.file import KnownServing, check_file
    from inc_mp_plugin.inc.check.measurements import load_captured

    serving = KnownServing(kv_cache, attention, reuse_cache)
    report = check_file(
        config, load_captured(modules, model), target, serving, measurements=measurements, device=device
    )
    for line in report.lines:
        typer.echo(line)
    if report.faults:
        raise InputError("\n".join(report.faults))
    typer.echo("Nothing about the file is suspicious.")
