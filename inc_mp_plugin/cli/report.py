"""`inc-mp report`: one page, and its figures."""

from __future__ import annotations

from inc_mp_plugin.cli.app import Folder
from inc_mp_plugin.runtime.progress import tell


def report(folder: Folder) -> None:
    """Write report.html, one file without network, and figures/ as PNG and SVG."""
    from inc_mp_plugin.pipeline.report import write_report

    tell(f"{write_report(folder)} is written; open it in a browser.")
