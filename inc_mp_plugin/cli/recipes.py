"""`inc-mp recipes`: the recipes that ship, to begin one's own with."""

from __future__ import annotations

from typing import Annotated

import typer

from inc_mp_plugin.runtime.progress import tell


def recipes(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="A recipe to print, by the beginning of its name.")
    ] = None,
) -> None:
    """List the recipes that ship, or print one: `inc-mp recipes llama-3.1-8b > my.yaml`.

    The paths of a recipe under `recipes/` are those of the package wherever there is no such file.
    """
    from inc_mp_plugin.cli.show import show_blocks
    from inc_mp_plugin.pipeline.shipped import recipe_path, recipes_table
    from inc_mp_plugin.runtime.shipped import shipped_folder

    if name is not None:
        typer.echo(recipe_path(name).read_text(encoding="utf-8"), nl=False)
        return
    show_blocks([recipes_table()])
    tell(f"All files are in {shipped_folder()}.")
