"""The map of a model with many layers: shades in the picture, one line per cell on the page."""

import pytest
from matplotlib.colors import to_hex
from report_case import plan

from inc_mp_plugin.report.plan_sections import plan_map
from inc_mp_plugin.report.plots import SHADES, plan_figure
from inc_mp_plugin.report.text import Cell, PlanTable

LOW = "fp8_e4m3"


def table(layers):
    """A model whose layer i takes i hundredths of a percent; op `down` stays."""
    up = [Cell(str(i), "up", LOW, True, i / 100, 1.0) for i in range(layers)]
    down = [Cell(str(i), "down", "bf16", False, 0.0, 0.0) for i in range(layers)]
    rows = {str(i): pair for i, pair in enumerate(zip(up, down, strict=True))}
    head = Cell("", "head", "bf16", False, 0.0, 0.0)
    return PlanTable((LOW,), ("up", "down"), rows, (head,), ())


def test_the_picture_has_layers_across_and_shades_by_thirds_of_the_largest_share():
    axes = plan_figure(table(61), "").axes[0]
    colors = {cell.get_xy(): to_hex(cell.get_facecolor()) for cell in axes.patches}
    assert len(colors) == 2 * 61 + 1
    assert [colors[x, 0] for x in (0, 20, 21, 40, 41, 60)] == [
        SHADES[0],
        SHADES[0],
        SHADES[1],
        SHADES[1],
        SHADES[2],
        SHADES[2],
    ]
    assert {colors[x, 1] for x in range(61)} == {colors[0, 2]} == {"#e3e6ea"}
    assert not axes.texts
    assert [label.get_text() for label in axes.get_yticklabels()] == ["up", "down", "head"]
    (legend,) = axes.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["up to 0.2 %", "up to 0.4 %", "up to 0.6 %"]


@pytest.mark.parametrize(("layers", "loss", "gain"), [(40, "0.1", "1.0"), (41, "0.07", "")])
def test_the_page_has_one_line_per_cell(layers, loss, gain):
    whole, *_ = plan_map(table(layers), plan(), {})
    cell = whole.grids[0].rows[7][1][0]
    assert (cell.loss, cell.gain) == (loss, gain)
    assert "% of the largest gain" in cell.note
    assert ("and, below it" in whole.caption) is (layers == 40)
