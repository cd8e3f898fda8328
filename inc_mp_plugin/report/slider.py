"""The slider over the map of a plan, as HTML."""

from __future__ import annotations

import json
from html import escape
from importlib.resources import files

from inc_mp_plugin.report.blocks import Explorer, PlanMap, ReportInfo


def slider(explorer: Explorer) -> str:
    """Make the slider, which the script shows; without scripting it stays hidden."""
    last = len(explorer.points) - 1
    words = (
        f"Slide along the exact frontier: less {explorer.yardstick} to the left, more gain to the right. The "
        "map then shows shares of that plan's cost, in %."
    )
    return (
        '<form id="explorer" hidden onsubmit="return false">'
        f'<label for="explorer-slider">{escape(words)}</label>'
        f'<input id="explorer-slider" type="range" min="0" max="{last}" value="{explorer.start}">'
        '<dl class="tiles" aria-live="polite"></dl>'
        '<pre tabindex="0" class="scroll"><code></code></pre>'
        '<button type="button">Back to the plan</button></form>'
    )


def slider_script(info: ReportInfo) -> str:
    """Make the data and the script of the slider; nothing where a report has none."""
    maps = (figure for figure in info.figures if isinstance(figure, PlanMap))
    explorer = next((own.explorer for own in maps if own.explorer is not None), None)
    if explorer is None:
        return ""
    script = files("inc_mp_plugin.report").joinpath("explorer.js").read_text(encoding="utf-8")
    return (
        f'<script type="application/json" id="explorer-data">{_data(explorer)}</script>\n'
        f"<script>\n{script}</script>\n"
    )


def _data(explorer: Explorer) -> str:
    content = {
        "points": [
            {
                "figures": dict(point.figures),
                "cost": _short(point.cost),
                "shift": _short(point.shift),
                "command": point.command,
            }
            for point in explorer.points
        ],
        "cells": {
            " ".join(key): {
                "label": explorer.labels[key],
                "states": [[s.point, s.ops, _short(s.cost), _short(s.shift)] for s in states],
            }
            for key, states in explorer.cells.items()
        },
    }
    # In a script element, "</" would end it.
    return json.dumps(content, separators=(",", ":"), ensure_ascii=False).replace("</", "<\\/")


def _short(value: float) -> float:
    """Keep five digits: enough for a share in %."""
    return float(f"{value:.5g}")
