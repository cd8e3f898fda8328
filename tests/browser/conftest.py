"""Pages of tests/report are shown in a browser here; the lane `browser` brings what that needs."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
