"""The slider of a report in a real browser: by mouse, keyboard and touch; wide and narrow, light and dark."""

import re
import shutil
import sys
from pathlib import Path

import pytest

from inc_mp_plugin.report.explorer import explorer

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from explorer_case import page_of, run_of  # noqa: E402

pytestmark = pytest.mark.slow
sync = pytest.importorskip("playwright.sync_api", reason="the lane `browser` installs playwright")
WIDTHS = pytest.mark.parametrize("width", [1280, 400])


@pytest.fixture(scope="module")
def run():
    return run_of(4, points=40, experts=2)


@pytest.fixture(scope="module")
def address(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page_of(run), encoding="utf-8")
    return path.as_uri()


@pytest.fixture(scope="module")
def browser():
    with sync.sync_playwright() as playwright:
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("Debian's chromium is not installed")
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


def opened(browser, address, **options):
    context = browser.new_context(**options)
    context.set_offline(True)
    page, faults = context.new_page(), []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url) if request.url != address else None)
    page.goto(address)
    return page, faults


def lowered(page):
    return {cell for cell in page.locator("td[data-cell]:not(.l0)").evaluate_all(CELLS)}


CELLS = "cells => cells.map(cell => cell.dataset.cell)"


def expected(run, number):
    now = {}
    for key, states in explorer(run).cells.items():
        now |= {" ".join(key): state.ops for state in states if state.point <= number}
    return {key for key, ops in now.items() if ops}


@WIDTHS
def test_the_map_and_the_figures_follow_the_slider(browser, address, run, width):
    page, faults = opened(browser, address, viewport={"width": width, "height": 900})
    slider, points = page.locator("#explorer-slider"), explorer(run).points
    as_planned = lowered(page)
    for number in (0, 7, len(points) - 1):
        slider.fill(str(number))
        assert lowered(page) == expected(run, number)
        tiles = page.locator("#explorer dl div").all_inner_texts()
        assert [tile.split("\n")[1] for tile in tiles] == list(points[number].figures.values())
        shown = page.locator("#explorer code").inner_text()
        assert shown == (points[number].command or "nothing is lowered")
    page.get_by_role("button", name="Back to the plan").click()
    assert lowered(page) == as_planned
    assert slider.input_value() == str(explorer(run).start)
    assert not faults


@WIDTHS
def test_nothing_is_wider_than_the_window(browser, address, width):
    page, _ = opened(browser, address, viewport={"width": width, "height": 900})
    page.locator("#explorer-slider").fill("9")
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_by_keyboard(browser, address, run):
    page, faults = opened(browser, address, viewport={"width": 1280, "height": 900})
    page.locator("#explorer-slider").focus()
    start = explorer(run).start
    page.keyboard.press("ArrowLeft")
    assert lowered(page) == expected(run, start - 1)
    page.keyboard.press("End")
    assert lowered(page) == expected(run, len(explorer(run).points) - 1)
    assert page.locator("#explorer-slider").get_attribute("aria-valuetext").startswith("gain: memory ")
    page.keyboard.press("Tab")  # the command, which scrolls where it is long
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.locator("#explorer-slider").input_value() == str(start)
    assert not faults


def test_by_touch(browser, address, run):
    page, _ = opened(browser, address, viewport={"width": 400, "height": 800}, has_touch=True)
    slider = page.locator("#explorer-slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2)
    assert int(slider.input_value()) >= len(explorer(run).points) - 2
    assert box["height"] >= 24  # a finger's least


def test_without_scripting_it_is_the_page_of_the_plan(browser, address):
    page, _ = opened(browser, address, java_script_enabled=False)
    assert not page.locator("#explorer").is_visible()
    assert page.locator("table.map").first.is_visible()


def luminance(colour):
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


COLOURS = "e => { const s = getComputedStyle(e); return [s.color, s.backgroundColor]; }"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(browser, address, scheme):
    """At least 4.5 to 1 (WCAG 2.1, 1.4.3): in the cells of the map, the tiles and the button."""
    page, _ = opened(browser, address, color_scheme=scheme)
    page.locator("#explorer-slider").fill("20")
    places = [f"td.l{level}" for level in range(5)] + ["#explorer .tile", "#explorer button", "#explorer pre"]
    for place in places:
        for element in page.locator(place).all()[:1]:
            light, dark = sorted(map(luminance, element.evaluate(COLOURS)), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, place
