"""A report as one HTML page that needs nothing else; without scripting it lacks the slider alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from importlib.resources import files
from itertools import groupby

from inc_mp_plugin.report.blocks import (
    Bars,
    Block,
    Chart,
    Code,
    MapCell,
    MapGrid,
    Missing,
    PlanMap,
    ReportInfo,
    Section,
    Strips,
    Table,
    Tile,
    Tiles,
)
from inc_mp_plugin.report.slider import slider, slider_script

_LONG = 12  # rows of a table that is shown at once
_WRAPPED = 48  # characters in a cell that may have several lines


def page(info: ReportInfo, pictures: Mapping[str, str]) -> str:
    """Render the whole page.

    Args:
        info: what it says.
        pictures: an `<svg>` element per chart, by the chart's name.
    """
    entries = "".join(
        f'<li><a href="#{_id(section.key)}">{_text(section.title)}</a></li>' for section in info.sections
    )
    sections = "".join(_section(section, pictures) for section in info.sections)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(info.title)}</title>\n<style>\n{_style()}</style>\n</head>\n<body>\n"
        f'<header><h1>{_text(info.title)}</h1><p class="subtitle">{_text(info.subtitle)}</p></header>\n'
        f'<nav aria-label="Contents"><ol>{entries}</ol></nav>\n<main>\n{sections}</main>\n'
        f"{slider_script(info)}</body>\n</html>\n"
    )


def _style() -> str:
    return files("inc_mp_plugin.report").joinpath("style.css").read_text(encoding="utf-8")


def _section(section: Section, pictures: Mapping[str, str]) -> str:
    parts = []
    # Charts that follow each other stand side by side where there is room.
    for charts, blocks in groupby(section.blocks, lambda block: isinstance(block, Chart | Bars | Strips)):
        drawn = "\n".join(_block(block, pictures) for block in blocks)
        parts.append(f'<div class="figures">\n{drawn}\n</div>' if charts else drawn)
    body = "\n".join(parts)
    key = _id(section.key)
    return (
        f'<section id="{key}" aria-labelledby="{key}-title">\n'
        f'<h2 id="{key}-title">{_text(section.title)}</h2>\n{body}\n</section>\n'
    )


def _block(block: Block, pictures: Mapping[str, str]) -> str:
    if isinstance(block, str):
        return f"<p>{_text(block)}</p>"
    if isinstance(block, Tiles):
        return f'<dl class="tiles">{"".join(map(_tile, block.tiles))}</dl>'
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Code):
        code = f'<pre tabindex="0" class="scroll"><code>{escape(block.text)}</code></pre>'
        return f'<p class="caption">{_text(block.caption)}</p>{code}'
    if isinstance(block, Missing):
        return f'<p class="missing">{_text(block.text)} <code>{escape(block.command)}</code></p>'
    if isinstance(block, PlanMap):
        grids = "".join(map(_grid, block.grids))
        above = "" if block.explorer is None else slider(block.explorer)
        return f'<p class="caption">{_text(block.caption)}</p>{above}{grids}'
    caption = f"<figcaption>{_text(block.caption)}</figcaption>"
    return f"<figure>{pictures[block.name]}{caption}</figure>"


def _tile(tile: Tile) -> str:
    note = f' class="{tile.verdict}"' if tile.verdict else ""
    return (
        f'<div class="tile"><dt>{_text(tile.label)}</dt><dd class="value">{_text(tile.value)}</dd>'
        f"<dd{note}>{_text(tile.note)}</dd></div>"
    )


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col"{_side(table, k)}>{_text(c)}</th>' for k, c in enumerate(table.columns))
    rows = "".join(_rows(table))
    whole = _scrolled(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", table.caption)
    if len(table.rows) > _LONG:
        return f"<details><summary>{_text(table.caption)} {len(table.rows)} rows.</summary>{whole}</details>"
    return f'<p class="caption">{_text(table.caption)}</p>{whole}'


def _rows(table: Table) -> Iterator[str]:
    for number, row in enumerate(table.rows):
        cells = "".join(f"<td{_side(table, k, text)}>{_text(text)}</td>" for k, text in enumerate(row))
        mark = ' class="marked"' if number in table.marked else ""
        yield f"<tr{mark}>{cells}</tr>"


def _side(table: Table, column: int, text: str = "") -> str:
    if column >= table.left:
        return ' class="n"'
    return ' class="w"' if len(text) > _WRAPPED else ""


def _grid(grid: MapGrid) -> str:
    head = "".join(f'<th scope="col">{_text(name)}</th>' for name in (grid.head, *grid.columns))
    rows = "".join(
        f'<tr><th scope="row">{_text(label)}</th>{"".join(map(_cell, cells))}</tr>'
        for label, cells in grid.rows
    )
    whole = f'<table class="map"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'
    return _scrolled(whole, f"Plan by {grid.head}")


def _cell(cell: MapCell | None) -> str:
    if cell is None:
        return "<td></td>"
    second = " ".join(filter(None, (cell.gain, cell.format)))
    small = f"<small>{_text(second)}</small>" if second else ""
    marks = f'class="l{cell.level}" data-cell="{escape(" ".join(cell.key))}" title="{escape(cell.note)}"'
    return f"<td {marks}>{_text(cell.loss)}{small}</td>"


def _scrolled(whole: str, label: str) -> str:
    """Put an element in a box that scrolls sideways, by keyboard too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{whole}</div>'


def _text(text: str) -> str:
    """Escape a text for HTML, and mark `code` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _id(key: str) -> str:
    return escape(f"section-{key}")
