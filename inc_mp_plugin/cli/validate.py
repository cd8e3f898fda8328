"""`inc-mp validate`: predicted against measured."""

from __future__ import annotations

import sys
from pathlib import Path
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
    through: Annotated[
        str | None,
        typer.Option(
            help="What lowers ops: `inc`; `hooks` that round as the target does; `auto`; or `vllm` itself."
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option(help="With --through vllm: the plan's checkpoint, from inc-mp export.")
    ] = None,
    vllm_python: Annotated[
        str | None,
        typer.Option(envvar="INC_MP_VLLM_PYTHON", help="The Python that has vLLM, if not this one."),
    ] = None,
    vllm_dtype: Annotated[
        str, typer.Option(help="With --through vllm: that it runs in; float32 leaves out the noise of BF16.")
    ] = "auto",
    allow_code: AllowCode = False,
    tau: Annotated[
        list[float] | None, typer.Option(help="With --time, a threshold to plan for; may be repeated.")
    ] = None,
    kl: Annotated[
        list[float] | None, typer.Option(help="The same, of the KL divergence in nats per token.")
    ] = None,
) -> None:
    """Lower ops, and compare predicted with measured loss and KL on held-out samples."""
    from inc_mp_plugin.cli.show import show_plan, show_time
    from inc_mp_plugin.pipeline.validate import validate_plan, validate_time

    if fault := _fault(through, time=time, thresholds=bool(tau or kl), model=model is not None):
        raise InputError(fault)
    if time:
        show_time(validate_time(folder, tau or [], kl or [], allow_code=allow_code))
        return
    if model is None:
        validate_plan(folder, through=through, allow_code=allow_code)
    else:
        from inc_mp_plugin.pipeline.served import validate_served

        validate_served(folder, model, python=vllm_python or sys.executable, dtype=vllm_dtype)
    show_plan(folder)


def _fault(through: str | None, *, time: bool, thresholds: bool, model: bool) -> str:
    """Say which options do not go together; nothing if all do.

    Args:
        through: what lowers ops, if given.
        time: True if times are measured.
        thresholds: True if thresholds are given.
        model: True if a checkpoint is given.
    """
    if time and through is not None:
        return "--through says who measures losses; with --time, times are measured: leave out one of both"
    if thresholds and not time:
        return "--tau and --kl go with --time; the threshold of the plan itself is set by `inc-mp solve`"
    if not time and (through == "vllm") != model:
        return "--through vllm and --model go together: the checkpoint of the plan, from inc-mp export"
    return ""
