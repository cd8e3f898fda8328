"""What is shown of a plan: the arrangement by equality, the drawing by what it says."""

import io

import numpy as np
import pytest
from rich.console import Console

from inc_mp_plugin.measurements import TimedGroup, TimedPlan, TimeValidation
from inc_mp_plugin.plan import Gains, GroupGains, Plan, Point, Sensitivity, Validation
from inc_mp_plugin.report.info import Cell, amount, plan_table, split_name
from inc_mp_plugin.report.plots import plan_figure, time_figure
from inc_mp_plugin.report.table import print_plan, print_time_validation, print_validation

OPS = ("m.layers.0.up", "m.layers.0.down", "m.layers.1.up", "head")
FORMATS = dict(zip(OPS, ("fp8_e4m3", "fp8_e4m3", "bf16", "fp8_e4m3"), strict=True))


def gains():
    pair = GroupGains(
        OPS[:2],
        (("bf16", "bf16"), ("fp8_e4m3", "fp8_e4m3")),
        (0.0, 6e6),
        (0.0, 0.0),
    )
    single = [GroupGains((op,), (("bf16",), ("fp8_e4m3",)), (0.0, 3e6), (0.0, 0.0)) for op in OPS[2:]]
    return Gains("memory", "byte", "exact", "bf16", (pair, *single))


def plan(**changes):
    values = {
        "objective": "memory",
        "unit": "byte",
        "source": "exact",
        "base": "bf16",
        "tau": 0.1,
        "budget": 1 / 768 * 10,
        "loss_mse": 1 / 768 * 7,
        "nrmse": 0.08,
        "gain": 9e6,
        "largest_gain": 12e6,
        "binds": True,
        "status": "proved optimal",
        "gap": 0.0,
        "seconds": 0.0,
        "formats": FORMATS,
    }
    return Plan(**{**values, **changes})


def table(**changes):
    seen = Sensitivity(OPS, np.ones(1), np.array([[1.0, 2.0, 9.0, 4.0]]), np.zeros((1, 4)))
    return plan_table(plan(**changes), gains(), seen)


def test_arrangement():
    found = table()
    assert found.lower == ("fp8_e4m3",)
    assert found.columns == ("up", "down", "head")
    assert found.rows == {
        "0": {
            "up": Cell("fp8_e4m3", pytest.approx(10.0), pytest.approx(25.0)),
            "down": Cell("fp8_e4m3", pytest.approx(20.0), pytest.approx(25.0)),
        },
        "1": {"up": Cell("bf16", 0.0, 0.0)},
        "": {"head": Cell("fp8_e4m3", pytest.approx(40.0), pytest.approx(25.0))},
    }
    assert found.summary[0] == "3 of 4 ops run in fp8_e4m3, the others in bf16."
    assert "9 MB, 75.0 % of the largest" in found.summary[1]
    assert len(found.summary) == 3


def test_a_threshold_that_does_not_bind_is_said():
    assert "does not bind: everything that gains anything fits" in table(binds=False).summary[-1]


def test_names():
    assert split_name("model.layers.12.mlp.experts.3.w1") == ("12", "3.w1")
    assert split_name("lm_head") == ("", "lm_head")


@pytest.mark.parametrize(
    ("value", "unit", "wanted"),
    [(0.0, "byte", "0 byte"), (-2e3, "byte", "-2 kB"), (1.5, "s", "1.5 s"), (0.0, "s", "0 ns")],
)
def test_amounts(value, unit, wanted):
    assert amount(value, unit) == wanted


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
    points = (Point(("a",), 1e-6, 2e-6), Point(("a", "b"), 4e-6, 4e-6))
    value = Validation(8, 2.0, 0.1, 0.05, Point(("b",), 3e-6, 1e-6), points, 0.987, 0.83)
    text = printed(print_validation, value, width=100)
    assert "the plan: 1" in text
    assert "3.00" in text
    assert "correlation of the logarithms 0.987, mean predicted / mean measured 0.83" in text
    assert "measured NRMSE 0.05, tau 0.1 (held)" in text


def test_figure_shows_every_op():
    axes = plan_figure(table(), "title").axes[0]
    assert len(axes.patches) == len(OPS)
    assert [text.get_text() for text in axes.texts] == ["10.0", "20.0", "40.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer 0", "layer 1", "head"]


TIMES = TimeValidation(
    "cpu",
    "a CPU",
    0.25,
    (
        TimedPlan("memory", 0.1, ("a", "b"), 0.100, 0.002, 0.104, 0.001),
        TimedPlan("memory", 0.2, ("a", "b", "c"), 0.100, 0.002, 0.120, 0.001),
        TimedPlan("empirical_time", 0.1, (), 0.0, 0.0, 0.0, 0.0),
    ),
    (TimedGroup(("m.layers.0.q", "m.layers.0.k"), 0.030, 0.001, 0.045, 2_500_000),),
)


def test_time_is_printed_with_errors_and_a_verdict():
    out = io.StringIO()
    print_time_validation(TIMES, Console(file=out, width=200))
    lines = [" ".join(line.replace("│", " ").split()) for line in out.getvalue().splitlines()]
    assert "Time saved by whole plans, of 250.0 ms on a CPU" in lines
    assert "memory 0.1 2 100.0 ± 2.000 104.0 ± 1.000 +4.0 % yes" in lines
    assert "memory 0.2 3 100.0 ± 2.000 120.0 ± 1.000 +20.0 % no" in lines
    assert "empirical_time 0.1 0 0.000 ± 0.000 0.000 ± 0.000 - -" in lines
    assert "q, k 30.0 ± 1.000 45.0 2.5" in lines
    assert "1 of 2 plans save what their groups add up to, within 5 % or two standard errors." in lines


def test_the_time_figure_shows_every_point():
    left, middle, right = time_figure(TIMES).axes
    assert left.containers[0].lines[0].get_xydata().tolist() == [[100.0, 104.0], [100.0, 120.0]]
    assert middle.containers[0].lines[0].get_xydata().tolist() == [[45.0, 30.0]]
    assert right.containers[0].lines[0].get_xydata().tolist() == [[2.5, 30.0]]
