"""`inc-mp frontier`: gain against loss."""

from __future__ import annotations

from typing import Annotated

import typer

from inc_mp_plugin.cli.app import Folder
from inc_mp_plugin.runtime.progress import tell


def frontier(
    folder: Folder,
    points: Annotated[int, typer.Option(min=2, help="Points of the exact curve, both ends included.")] = 100,
    draws: Annotated[int, typer.Option(min=0, help="Draws of the random baseline.")] = 10,
) -> None:
    """Show gain against loss, or KL, for every objective: the exact curve, with the baselines beside it."""
    from inc_mp_plugin.cli.show import show_frontiers
    from inc_mp_plugin.pipeline.solve import draw_frontier

    show_frontiers(draw_frontier(folder, points, draws).values())
    tell(f"Every point is in {folder / 'frontier.json'}.")
