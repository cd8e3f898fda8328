"""The page and its pictures: whole, self-contained, escaped, the same every time."""

import re
import sys
from html.parser import HTMLParser

import pytest
from report_case import EVERYTHING, artefacts

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.report.blocks import Chart, PlanMap, Series
from inc_mp_plugin.report.document import report_info
from inc_mp_plugin.report.html import page
from inc_mp_plugin.report.plots import INK, PAPER, STYLES, render
from inc_mp_plugin.report.svg import inline

VOID = {"meta", "br", "hr", "link", "img", "input"}


@pytest.fixture(scope="module")
def info():
    return report_info(artefacts(**EVERYTHING))


@pytest.fixture(scope="module")
def pictures(info):
    return {
        figure.name: inline(render(figure)[1].decode(), figure.name, figure.caption)
        for figure in info.figures
    }


class Reader(HTMLParser):
    """Checks that tags are balanced, and collects them with their attributes and the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(html)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_needs_nothing_else(info, pictures):
    html = page(info, pictures)
    reader = Reader(html)
    names = [tag for tag, _ in reader.tags]
    assert "script" not in names
    assert "http" not in html
    assert "url(" not in html.replace("url(#", "")
    assert names.count("svg") == len(info.figures) - 1  # the map is a table
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(set(ids)) == len(ids)
    targets = {attrs["href"][1:] for _, attrs in reader.tags if "href" in attrs}
    assert targets <= set(ids)
    assert set(re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_everything_is_escaped(info, pictures):
    reader = Reader(page(info, pictures))
    assert "Mixed-precision plan of Tiny<&>" in reader.text
    assert reader.text.count("head<&>") >= 3  # the map, and two charts
    assert "m.<experts>" in reader.text


def test_pictures_take_the_ink_of_the_page(info, pictures):
    for figure in info.figures:
        picture = pictures[figure.name]
        if not isinstance(figure, PlanMap):
            assert "currentColor" in picture
            assert PAPER not in picture
        assert INK not in picture
        assert 'role="img" aria-label="' in picture


def test_the_same_twice(info, pictures):
    chart = next(figure for figure in info.figures if figure.name == "curve-memory")
    assert render(chart) == render(chart)
    assert page(info, pictures) == page(info, pictures)


def test_every_style_and_an_unknown_one_is_drawn():
    series = tuple(Series(style, style, (1.0, 2.0), (1.0, 3.0), (0.5, 2.0), (2.0, 4.0)) for style in STYLES)
    odd = Series("$odd_$", "eagl", (1.0,), (2.0,))
    _, svg = render(Chart("all", "", "x", "y", (*series, odd), logarithmic_x=True, logarithmic_y=True))
    assert "$odd_$" in svg.decode()


def test_without_matplotlib_it_is_said_what_to_install(monkeypatch, info):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"inc_mp_plugin\[report\]"):
        render(info.figures[1])
