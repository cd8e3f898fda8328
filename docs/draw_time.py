"""Draw whether the time of a run adds up, as the README shows it.

python docs/draw_time.py runs/timing-llama-cpu docs/pages/time.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from inc_mp_plugin.report.plots import charts_figure
from inc_mp_plugin.report.time_section import time_charts
from inc_mp_plugin.stages.time_validation import TIME_VALIDATION


def main(folder: str, picture: str) -> None:
    """Draw."""
    validation = TIME_VALIDATION.read(Path(folder))
    title = f"{validation.description}; bars: two standard errors; line: measured = sum"
    charts_figure(time_charts(validation), title).savefig(picture, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
