"""`inc-mp validate`: predicted against measured."""

from __future__ import annotations

from typing import Annotated

import typer

from inc_mp_plugin.cli.app import AllowCode, Folder
from inc_mp_plugin.core.errors import InputError


def validate(
    folder: Folder,
    *,
    time: Annotated[
        bool, typer.Option("--time", help="Measure time instead: plans against the sums of their groups.")
    ] = False,
    allow_code: AllowCode = False,
    tau: Annotated[
        list[float] | None, typer.Option(help="With --time, a threshold to plan for; may be repeated.")
    ] = None,
) -> None:
    """Quantize through INC, and compare predicted with measured loss on held-out samples."""
    from inc_mp_plugin.cli.show import show_plan, show_time
    from inc_mp_plugin.pipeline.validate import validate_plan, validate_time

    if time:
        show_time(validate_time(folder, tau or [], allow_code=allow_code))
        return
    if tau:
        message = "--tau goes with --time; the threshold of the plan itself is set by `inc-mp solve`"
        raise InputError(message)
    validate_plan(folder, allow_code=allow_code)
    show_plan(folder)
