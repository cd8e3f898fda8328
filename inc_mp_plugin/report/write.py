"""report.html and figures/: a report as files."""

from __future__ import annotations

from pathlib import Path

from inc_mp_plugin.report.blocks import ReportInfo
from inc_mp_plugin.report.html import page
from inc_mp_plugin.report.plots import render
from inc_mp_plugin.report.svg import inline
from inc_mp_plugin.runtime import store


def write_pages(folder: Path, info: ReportInfo) -> Path:
    """Write what a report says: report.html, and every figure as PNG and SVG under figures/.

    Raises:
        InputError: matplotlib is missing.
    """
    pictures = {}
    for figure in info.figures:
        png, svg = render(figure)
        store.write_bytes(folder / "figures" / f"{figure.name}.png", png)
        store.write_bytes(folder / "figures" / f"{figure.name}.svg", svg)
        pictures[figure.name] = inline(svg.decode(), figure.name, figure.caption)
    path = folder / "report.html"
    store.write_bytes(path, page(info, pictures).encode())
    return path
