"""`inc-mp check`: an INC file or a quantized checkpoint, the user's own included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.core.errors import InputError


def check(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG.json|MODEL", help="An INC FP8 JSON file, or a checkpoint.")
    ],
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
    """Show what INC would select with a file, or what vLLM would stumble over in a checkpoint.

    Of an INC file, patterns that match nothing or too much, lists that cancel each other, a selection of
    everything or nothing, and mixes that the target cannot run are suspicious. Of a folder of
    compressed-tensors, damaged or missing files, entries of `ignore` that match nothing, fused modules that
    are quantized in part, weights without scales and scales without weights. Any of these gives exit code 2.
    """
    if config.is_dir():
        options = (modules, model, target, kv_cache, attention, measurements, device)
        _check_folder(config, others=reuse_cache or any(option is not None for option in options))
        return
    if not config.exists():
        message = f"{config} does not exist; give a file of INC's, or the folder of a checkpoint"
        raise InputError(message)
    from inc_mp_plugin.inc.check.file import KnownServing, check_file
    from inc_mp_plugin.inc.check.measurements import load_captured
    from inc_mp_plugin.runtime.shipped import or_shipped

    captured = load_captured(modules, model and or_shipped(model))
    serving = KnownServing(kv_cache, attention, reuse_cache)
    report = check_file(config, captured, target, serving, measurements=measurements, device=device)
    _show(report.lines, report.faults, "file")


def _show(lines: Iterable[str], faults: Sequence[str], checked: str) -> None:
    """Show what was found.

    Args:
        lines: of the report.
        faults: that were found.
        checked: name of what was checked.

    Raises:
        InputError: there are faults.
    """
    for line in lines:
        typer.echo(line)
    if faults:
        raise InputError("\n".join(faults))
    typer.echo(f"Nothing about the {checked} is suspicious.")


def _check_folder(folder: Path, *, others: bool) -> None:
    """Check a checkpoint; the options are those of an INC file.

    Raises:
        InputError: it has faults, or options were given.
    """
    from inc_mp_plugin.export.check import check_checkpoint

    if others:
        message = f"{folder} is a folder, which is checked as a checkpoint, without options"
        raise InputError(message)
    report = check_checkpoint(folder)
    _show([report.summary], report.faults, "checkpoint")
