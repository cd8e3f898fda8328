"""`inc-mp explain`: why an op is where it is."""

from __future__ import annotations

from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder


def explain(
    folder: Folder,
    op: Annotated[
        str | None, typer.Argument(metavar="[OP]", help="Its name, or the end of it, such as 3.mlp.up_proj.")
    ] = None,
) -> None:
    """Say why an op is where it is: price, gain, ties, and what would flip it; the model is not needed.

    Without an op: those that are nearest to another format, in both directions.
    """
    from inc_mp_plugin.cli.show import show_blocks
    from inc_mp_plugin.pipeline.explain import explain_folder

    show_blocks(explain_folder(folder, op))
