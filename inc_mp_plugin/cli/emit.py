"""`inc-mp emit`: the files of a target."""

from __future__ import annotations

from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder
from inc_mp_plugin.core.errors import InputError


def emit(
    folder: Folder,
    target: Annotated[str, typer.Option(help="Consumer of the file, such as optimum-habana.")] = "",
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="kv_cache, attention, reuse_cache; refused if the target would run the plan differently.",
        ),
    ] = None,
) -> None:
    """Write the INC JSON files of a target, and the commands to run with them.

    The files are refused unless INC would select exactly the plan, in the modules that the target has.
    """
    from inc_mp_plugin.pipeline.emit import emit_files
    from inc_mp_plugin.targets import TARGETS

    if not target:
        names = ", ".join(name for name, consumer in TARGETS.items() if consumer.device is not None)
        message = f"--target is missing; give the consumer of the file: {names}"
        raise InputError(message)
    script = emit_files(folder, target, overrides or []).with_suffix(".sh")
    if script.exists():
        typer.echo(f"\n{script}:\n\n{script.read_text(encoding='utf-8')}", nl=False)
