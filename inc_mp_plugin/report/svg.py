"""Pictures of matplotlib inside a page."""

from __future__ import annotations

import html
import re

from inc_mp_plugin.report.plots import COLORS, INK, PAPER


def inline(svg: str, name: str, label: str) -> str:
    """Return the `<svg>` element of a picture for a page.

    It has the page's ink and font, ids of its own, and no addresses.

    Args:
        svg: as `plots.render` returns it.
        name: unique on the page; it starts every id.
        label: of the picture, for readers who do not see it.
    """
    body = svg[svg.index("<svg") : svg.rindex("</svg>") + len("</svg>")]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)
    inner = body[body.index(">") + 1 :].replace("xlink:href=", "href=")
    inner = inner.replace(INK, "currentColor").replace(f"fill: {PAPER}", "fill: none")
    for color, value in COLORS.items():
        inner = inner.replace(value, f"var(--{color})")
    inner = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", inner)
    inner = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", inner)
    inner = re.sub(r"\s+", " ", inner)
    box = body.partition('viewBox="')[2].partition('"')[0]
    return f'<svg viewBox="{box}" role="img" aria-label="{html.escape(label)}">{inner}'
