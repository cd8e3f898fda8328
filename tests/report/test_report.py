"""What is shown of a plan: the arrangement by equality, the drawing by what it says."""

import io

import pytest
from report_case import FRONTIER, OPS, TIMES, VALIDATION, gains, losses, plan
from rich.console import Console

from inc_mp_plugin.report.loss_sections import frontier_table
from inc_mp_plugin.report.measured import measured_text
from inc_mp_plugin.report.plan_table import print_plan
from inc_mp_plugin.report.plots import charts_figure, plan_figure
from inc_mp_plugin.report.terminal import print_blocks
from inc_mp_plugin.report.text import Cell, amount, places, plan_table, split_name
from inc_mp_plugin.report.time_section import time_charts, time_tables, time_text
from inc_mp_plugin.report.validation_section import validation_tables


def table(**changes):
    return plan_table(plan(**changes), gains(), losses())


def test_arrangement():
    plan_map = table()
    up = Cell("0", "up", "fp8_e4m3", True, pytest.approx(10.0), pytest.approx(25.0))
    down = Cell("0", "down", "fp8_e4m3", True, pytest.approx(20.0), pytest.approx(25.0))
    later = Cell("1", "up", "bf16", False, 0.0, 0.0)
    head = Cell("", "head<&>", "fp8_e4m3", True, pytest.approx(40.0), pytest.approx(25.0))
    assert plan_map.lower == ("fp8_e4m3",)
    assert plan_map.columns == ("up", "down")
    assert plan_map.layers == {"0": (up, down), "1": (later, None)}
    assert plan_map.outside == (head,)
    assert plan_map.cells == (up, down, later, head)
    assert [cell.label for cell in (up, head)] == ["layer 0 up", "head<&>"]
    assert plan_map.summary[0] == "3 of 4 ops run in fp8_e4m3, the others in bf16."
    assert "9 MB, 75.0 % of the largest" in plan_map.summary[1]
    assert len(plan_map.summary) == 3


def test_a_threshold_that_does_not_bind_is_said():
    assert "does not bind: everything that gains anything fits" in table(binds=False).summary[-1]


def test_a_threshold_that_no_op_fits_is_said():
    nothing = dict.fromkeys(plan().formats, "bf16")
    said = table(formats=nothing, binds=False).summary[-1]
    assert said == "No op that gains anything fits tau 0.1: everything stays in bf16."


def test_names():
    assert split_name("model.layers.12.mlp.experts.3.w1") == ("12", "*.w1")
    assert split_name("model.layers.12.blocks.3.conv") == ("12", "3.conv")
    assert split_name("lm_head") == ("", "lm_head")


def test_ops_of_the_same_short_name_have_places_of_their_own():
    ops = ["encoder.layers.0.fc", "decoder.layers.0.fc", "decoder.layers.1.fc", "decoder.layers.1.out"]
    place_of = places(ops)
    assert len(set(place_of.values())) == 4
    assert place_of["decoder.layers.1.out"] == ("1", "out")


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.0, "byte", "0 byte"), (-2e3, "byte", "-2 kB"), (1.5, "s", "1.5 s"), (0.0, "s", "0 ns")],
)
def test_amounts(value, unit, text):
    assert amount(value, unit) == text


def printed(draw, *arguments, width=40):
    console = Console(file=io.StringIO(), width=width)
    draw(*arguments, console)
    return console.file.getvalue()


def test_tables_line_up_and_nothing_is_cut_in_a_narrow_window():
    text = printed(print_plan, table())
    assert "10.0/25.0" in text
    assert "40.0/25.0" in text
    assert "…" not in text
    rows = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
    assert len({len(row) for row in rows}) == 2  # one width per table


def test_validation_is_shown():
    text = printed(
        print_blocks, [*validation_tables(VALIDATION, 0.9), measured_text(VALIDATION, plan())], width=100
    )
    assert "90 % interval" in text
    assert "0.83, and 2 of them lie in their interval" in text
    assert "4.00e-06 (2.00e-06 to 9.00e-06) !" in text
    assert "the plan: 1" in text
    assert "2.00" in text
    assert "correlation of the logarithms is 0.987, mean predicted / mean measured 0.83" in text
    assert "NRMSE is 0.05 (0.041 to 0.07) (tau 0.1: held; in brackets, a 90 % interval)" in text


def test_a_frontier_is_shown():
    text = printed(print_blocks, [frontier_table(FRONTIER)], width=99)
    assert "50.0 knee" in text
    assert "0.05 to 0.2" in text


def test_figure_shows_every_op():
    axes = plan_figure(table(), "title").axes[0]
    assert len(axes.patches) == len(OPS)
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0", "40.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "layer 1", "head<&>"]


def test_time_is_printed_with_errors_and_a_verdict():
    text = printed(print_blocks, [*time_tables(TIMES), time_text(TIMES)], width=200)
    lines = [" ".join(line.replace("│", " ").split()) for line in text.splitlines()]
    assert "Time saved by whole plans, of 250.0 ms on a CPU" in lines
    assert "memory tau 0.1 2 100.0 ± 2.000 104.0 ± 1.000 +4.0 % yes" in lines
    assert "memory tau 0.2 3 100.0 ± 2.000 120.0 ± 1.000 +20.0 % no" in lines
    assert "empirical_time tau 0.1 0 0.000 ± 0.000 0.000 ± 0.000 – –" in lines
    assert "q, k 30.0 ± 1.000 45.0 2.5" in lines
    assert "1 of 2 plans save what their groups add up to, within 5 % or two standard errors." in lines


def test_the_time_figure_shows_every_point():
    drawn = charts_figure(time_charts(TIMES)).axes
    points = [axes.containers[-1].lines[0].get_xydata().tolist() for axes in drawn]
    assert points == [[[100.0, 104.0], [100.0, 120.0]], [[45.0, 30.0]], [[2.5, 30.0]]]
