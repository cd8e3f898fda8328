"""The slider over the map: its numbers against those of each plan alone, and its size."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from explorer_case import page_of, run_of
from report_case import FRONTIER, artefacts, graph, plan

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.report.explorer import explorer
from inc_mp_plugin.report.loss_sections import frontier_table
from inc_mp_plugin.report.text import places
from inc_mp_plugin.solver.planner import solve


def cells_at(shown, number):
    for key, states in shown.cells.items():
        for state in states:
            if state.point <= number:
                yield key, state  # a later one takes its place


@pytest.mark.parametrize("yardstick", ["kl", "loss"])
@pytest.mark.parametrize("experts", [0, 3])
def test_cells_add_up_to_the_plan_of_each_point(yardstick, experts):
    """At each point, against the plan itself: its ops by cell, and the parts of its cost."""
    run = run_of(3, yardstick, points=25, experts=experts)
    shown, curves = explorer(run), run.frontiers["memory"]
    exact, where = curves.curves[0], places(list(run.plan.formats))
    assert len(shown.points) == len(exact.gain) > 15
    for number, point in enumerate(shown.points):
        lowered = curves.plans.lowered(number)
        last = dict(cells_at(shown, number))
        assert {key: state.ops for key, state in last.items() if state.ops} == {
            key: sum(where[op] == key for op in lowered) for key in {where[op] for op in lowered}
        }
        parts = sum(state.cost + point.shift * state.shift for state in last.values())
        assert parts == pytest.approx(point.cost)
        assert point.cost == exact.loss_mse[number]


@pytest.mark.parametrize("yardstick", ["kl", "loss"])
def test_the_command_of_a_point_gives_its_plan(yardstick):
    run = run_of(3, yardstick, points=12)
    shown, exact = explorer(run), run.frontiers["memory"].curves[0]
    assert shown.points[0].command == ""
    for point, gain in zip(shown.points[1:], exact.gain[1:], strict=True):
        key, value = re.fullmatch(r"inc-mp solve runs/x (kl|tau)=([\d.e-]+)", point.command).groups()
        again = solve(run.gains["memory"], run.losses, **{key: float(value)})
        assert again.gain >= gain
        assert again.gain == pytest.approx(gain, rel=0.05)
    confident = run_of(3, yardstick, points=12, recipe={**run.recipe, "confidence": 0.95})
    assert explorer(confident).points[5].command.endswith(" confidence=null")


def test_the_slider_starts_at_the_plan():
    run = run_of(3)
    shown, exact = explorer(run), run.frontiers["memory"].curves[0]
    distances = [abs(gain - run.plan.gain) for gain in exact.gain]
    assert distances[shown.start] == min(distances)


def test_other_objectives_and_the_other_yardstick_follow():
    run = run_of(2, points=8)
    times = replace(run.gains["memory"], objective="roofline", unit="s", source="modelled")
    curves = replace(run.frontiers["memory"], beside=tuple(0.04 * k for k in range(8)))
    loss = replace(run.losses.sensitivity, yardstick="loss", loss=np.full(8, 2.0))
    both = Costs(replace(loss, kl=run.losses.sensitivity))
    gains = {"memory": run.gains["memory"], "roofline": times}
    shown = explorer(replace(run, gains=gains, losses=both, frontiers={"memory": curves}))
    figures = shown.points[4].figures
    assert figures["NRMSE of the loss, predicted"] == "0.2"  # sqrt(0.16) / 2
    memory, time = figures["gain: memory"], figures["gain: roofline"]
    assert time.endswith("% (modelled)")
    assert memory.rpartition(", ")[2] in time


@pytest.mark.parametrize("frontiers", [None, {}, {"memory": FRONTIER}], ids=["none", "other", "older"])
def test_without_plans_along_the_frontier_there_is_no_slider(frontiers):
    run = artefacts(frontiers=frontiers, plan=plan(), graph=graph())
    assert explorer(run) is None
    assert "<script" not in page_of(run)


def test_a_page_of_80_layers_has_less_than_a_megabyte_and_needs_no_network():
    html = page_of(run_of(80))
    assert len(html.encode()) < 1e6
    assert "http" not in html
    assert "src=" not in html
    (text,) = re.findall(r'<script type="application/json" id="explorer-data">(.*?)</script>', html)
    data = json.loads(text)
    assert len(data["points"]) > 90
    cells = set(re.findall(r'data-cell="([^"]*)"', html))
    assert data["cells"].keys() == cells


def test_a_long_table_keeps_both_ends_and_the_knee():
    run = run_of(3)
    curves = run.frontiers["memory"]
    whole, short = frontier_table(curves), frontier_table(curves, 10)
    assert len(whole.rows) == len(curves.curves[0].gain)
    assert len(short.rows) in (10, 11)
    assert short.rows[0] == whole.rows[0]
    assert short.rows[-1] == whole.rows[-1]
    assert short.rows[short.marked[0]] == whole.rows[curves.knee]
