"""`inc-mp solve`: another plan from the same measurements."""

from __future__ import annotations

from inc_mp_plugin.cli.app import Folder, Overrides


def solve(folder: Folder, overrides: Overrides = None) -> None:
    """Write plan.json anew, for another threshold, objective or strategy; the model is not needed."""
    from inc_mp_plugin.cli.show import show_plan
    from inc_mp_plugin.pipeline.solve import solve_folder

    solve_folder(folder, overrides or [])
    show_plan(folder, validation=False)
