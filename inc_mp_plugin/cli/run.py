"""`inc-mp run`: an INC script with `ip_mse` registered."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.core.errors import InputError

_INTERRUPTED = 130  # as shells have it
ANY_ARGUMENTS = {  # of typer: all that follows the script's name
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "allow_interspersed_args": False,
}


def run(
    context: typer.Context,
    script: Annotated[Path, typer.Argument(metavar="SCRIPT.py", help="A Python script that uses INC.")],
) -> None:
    """Run an INC script unchanged, with `ip_mse` registered; what follows its name is for the script."""
    run_script(script, context.args)


def run_script(path: Path, arguments: Sequence[str]) -> None:
    """Run a Python script as `python SCRIPT.py ...` would, after registering.

    Args:
        path: the script.
        arguments: what it finds in sys.argv after its own name.

    Raises:
        InputError: there is no such file.
        SystemExit: as the script ends, or 130 after Ctrl-C.
    """
    if not path.is_file():
        message = f"script {path} {'is a folder' if path.is_dir() else 'does not exist'}; give a Python file"
        raise InputError(message)
    from inc_mp_plugin.strategy.entry import register

    register()
    before = sys.argv, sys.path
    sys.argv = [str(path), *arguments]
    sys.path = [str(path.resolve().parent), *sys.path]
    try:
        runpy.run_path(str(path), run_name="__main__")
    except KeyboardInterrupt:
        raise SystemExit(_INTERRUPTED) from None
    finally:
        sys.argv, sys.path = before
