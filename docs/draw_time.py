"""Draw whether the time of a run adds up, as the README shows it.

python docs/draw_time.py runs/timing-llama-cpu docs/time.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from inc_mp_plugin import artefacts
from inc_mp_plugin.report.plots import time_figure


def main(folder: str, picture: str) -> None:
    """Draw."""
    path = Path(folder, "time_validation.json")
    validation = artefacts.load(path, "time_validation", artefacts.time_validation_from_json)
    time_figure(validation).savefig(picture, dpi=110, facecolor="white")


if __name__ == "__main__":
    main(*sys.argv[1:])
