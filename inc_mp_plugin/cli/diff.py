"""`inc-mp diff`: what changed between two plans, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder


def diff(
    first: Folder,
    second: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to compare it with.")],
) -> None:
    """Compare two plans: data, thresholds, targets, noise and version, and the ops that moved."""
    from inc_mp_plugin.cli.show import show_blocks
    from inc_mp_plugin.pipeline.compare import compare_folders

    show_blocks(compare_folders(first, second))
