"""Margins against every choice there is: the frontier's corners, and what is worth its price."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import NO_DEMANDS, Tie
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.margins import margins
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.ties import constrained_program

LOW = "fp8_e4m3"


def instance(seed):
    """Two pairs whose gains do not add up, some of them losses, and two single ops."""
    draw = np.random.default_rng(seed)
    ops = ("a", "b", "c", "d", "e", "f")
    groups = []
    for names in (ops[:2], ops[2:4], ops[4:5], ops[5:]):
        configurations = tuple(itertools.product(("bf16", LOW), repeat=len(names)))
        gain = (0.0, *draw.uniform(-2.0, 9.0, len(configurations) - 1).tolist())
        groups.append(GroupGains(names, configurations, gain, (0.0,) * len(gain)))
    rows = draw.lognormal(0.0, 1.0, (4, 6))
    kl = Sensitivity(ops, np.ones(4), rows, 0 * rows, yardstick="kl", tokens=np.ones(4))
    return Gains("roofline", "s", "modelled", "bf16", tuple(groups)), Costs(kl)


def choices(gains, costs):
    """Cost, gain and lowered ops of every choice."""
    prices = costs.kl.costs(LOW)
    for picks in itertools.product(*(range(len(g.configurations)) for g in gains.groups)):
        chosen = list(zip(gains.groups, picks, strict=True))
        lowered = {
            op for g, p in chosen for op, f in zip(g.ops, g.configurations[p], strict=True) if f == LOW
        }
        yield sum(prices[op] for op in lowered), sum(g.gain[p] for g, p in chosen), lowered


def margins_of(gains, costs, kl, demands=NO_DEMANDS):
    plan = solve(gains, costs, kl=kl, demands=demands)
    return plan, margins(plan, constrained_program(gains, costs, demands))


@pytest.mark.parametrize("seed", range(12))
def test_an_op_enters_where_the_falling_price_first_lowers_it(seed):
    """Of all choices, the best at a price that falls from very high to nothing."""
    gains, costs = instance(seed)
    cost, gain, lowered = map(list, zip(*choices(gains, costs), strict=True))
    best = np.argmax(np.array(gain) - np.geomspace(1e6, 1e-6, 40_000)[:, None] * np.array(cost), axis=1)
    first = {}
    for place in dict.fromkeys(best.tolist()):
        for op in lowered[place]:
            first.setdefault(op, (cost[place], gain[place]))
    _, of = margins_of(gains, costs, max(cost) / 2)
    entries = {op: margin.entry for op, margin in of.of.items() if margin.entry is not None}
    assert entries == {op: pytest.approx(corner) for op, corner in first.items()}
    for corner in entries.values():  # it is a plan of the exact program, and no plan gains more
        assert solve(gains, costs, kl=corner.cost * (1 + 1e-9)).gain == pytest.approx(corner.gain)


@pytest.mark.parametrize("seed", range(12))
def test_at_a_corner_what_is_lowered_gains_more_than_its_price_and_nothing_else_does(seed):
    gains, costs = instance(seed)
    _, of = margins_of(gains, costs, 1e6)
    assert of.price == 0.0
    for corner in {margin.entry for margin in of.of.values() if margin.entry is not None}:
        plan, here = margins_of(gains, costs, corner.cost * (1 + 1e-9))
        if not here.price:
            continue
        for op, margin in here.of.items():
            worth = margin.gain - here.price * margin.cost
            assert worth >= -1e-6 if op in plan.lowered else worth <= 1e-6


def test_ratio_and_rate_by_hand():
    """Gains 6, 4 and 3 for costs of 2, 2 and 6 half nats: room for 3 gives the second op half a part."""
    ops, gain = ("a", "b", "c"), (6.0, 4.0, 3.0)
    pair = (("bf16",), (LOW,))
    groups = tuple(GroupGains((op,), pair, (0.0, g), (0.0, 0.0)) for op, g in zip(ops, gain, strict=True))
    rows = np.array([[2.0, 2.0, 6.0]]) * 768
    costs = Costs(Sensitivity(ops, np.ones(1), rows, 0 * rows, yardstick="kl", tokens=np.ones(1)))
    plan, of = margins_of(Gains("memory", "byte", "exact", "bf16", groups), costs, 3.0)
    assert plan.quantized == ("a",)
    assert of.price == pytest.approx(2.0)
    assert {op: of.ratio(op) for op in ops} == pytest.approx({"a": 1.5, "b": 1.0, "c": 0.25})
    assert [of.of[op].entry for op in ops] == [
        pytest.approx(corner) for corner in ((2.0, 6.0), (4.0, 10.0), (10.0, 13.0))
    ]


def test_tied_ops_go_together_and_what_has_no_choice_has_no_margin():
    gains, costs = instance(3)
    gains = replace(gains, groups=tuple(replace(g, gain=tuple(map(abs, g.gain))) for g in gains.groups))
    held = replace(NO_DEMANDS, ties=(Tie(("e", "f"), "one kernel"),), kept={"a": "it is asked for"})
    _, of = margins_of(gains, costs, 2.0, held)
    assert "a" not in of.of
    assert of.of["e"] == of.of["f"]
    assert of.of["e"].gain == pytest.approx(gains.groups[2].gain[1] + gains.groups[3].gain[1])
