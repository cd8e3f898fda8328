"""Draw the plan of a run as a picture, as the README shows it.

python docs/draw_plan.py runs/tiny-llama docs/pages/plan.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.report.plots import plan_figure
from inc_mp_plugin.report.text import amount, plan_table


def main(folder: str, picture: str) -> None:
    """Draw."""
    run = Run(Path(folder))
    plan = run.plan
    title = (
        f"{len(plan.quantized)} of {len(plan.formats)} ops in low precision save "
        f"{amount(plan.gain, plan.unit)} ({100 * plan.gain / plan.largest_gain:.0f} % of the largest gain); "
        f"{f'kl {plan.kl:g}' if plan.kl is not None else f'tau {plan.tau:g}'}"
    )
    table = plan_table(plan, run.gains[plan.objective], run.as_planned.losses)
    plan_figure(table, title).savefig(picture, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
