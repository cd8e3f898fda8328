"""`inc-mp export`: the plan as a checkpoint that vLLM loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import SCHEMES


def export(
    folder: Folder,
    out: Annotated[Path | None, typer.Option(metavar="MODEL", help="New folder of the checkpoint.")] = None,
    scheme: Annotated[
        str, typer.Option(help="dynamic: weights by channel, activations by token; static: INC's scales.")
    ] = "dynamic",
) -> None:
    """Write the model with the planned linear ops in FP8, for vLLM and other servers.

    The folder is one of transformers, in the form of compressed-tensors. It is refused if vLLM would run a
    module of its in FP8 in part.
    """
    from inc_mp_plugin.pipeline.export import export_plan

    if out is None:
        message = "--out is missing; give the new folder of the checkpoint"
        raise InputError(message)
    known = next((word for word in SCHEMES if word == scheme), None)
    if known is None:
        raise InputError(unknown("scheme", scheme, SCHEMES))
    for line in export_plan(folder, out, known).lines:
        typer.echo(line)
