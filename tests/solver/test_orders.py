"""Baselines by layers: what people do without a plan, by hand and against the rule in words."""

import numpy as np
import pytest

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline, baseline_curve, baseline_gaining
from inc_mp_plugin.solver.frontier import frontier
from inc_mp_plugin.solver.orders import head_of
from inc_mp_plugin.solver.program import make_program

LOW = "fp8_e4m3"


def model(layers, *outside):
    """Layers of a linear op that gains 2 and a product that gains 1; ops before and after them."""
    kinds = {"q": "linear", "qk": "bgemm"}
    inside = [
        Op(f"m.layers.{i}.{name}", kind, 1, 4, 1) for i in range(layers) for name, kind in kinds.items()
    ]
    before, after = ([op for op in outside if (op.name < "m.layers") is side] for side in (True, False))
    graph = Graph((*before, *inside, *after), (), (), {})
    names = [op.name for op in graph.ops]
    groups = [
        GroupGains((op.name,), (("bf16",), (LOW,)), (0.0, 2.0 if op.kind == "linear" else 1.0), (0.0, 0.0))
        for op in graph.ops
    ]
    gains = Gains("memory", "byte", "exact", "bf16", tuple(groups))
    rows = np.arange(1.0, len(names) + 1)[None].repeat(2, axis=0)
    return graph, gains, Sensitivity(tuple(names), np.full(2, 10.0), rows, 0.0 * rows)


HEAD = Op("m.z_head", "linear", 1, 4, 1)
EMBEDDING = Op("m.first", "linear", 1, 4, 1)


def test_practice_is_all_linear_ops_but_the_head():
    graph, gains, seen = model(3, EMBEDDING, HEAD)
    plan = baseline(gains, seen, "practice", 1e-9, graph=graph)  # whatever the threshold
    assert plan.quantized == ("m.first", "m.layers.0.q", "m.layers.1.q", "m.layers.2.q")
    assert plan.gain == 8.0
    assert plan.tau == plan.nrmse
    assert plan.status == "not optimised: all linear ops but the head"
    curve = baseline_curve(make_program(gains, Costs(seen)), "loss", "practice", 0, graph=graph)
    assert (curve.last.ops, curve.last.gain) == ((4,), (8.0,))
    assert curve.last.loss_mse == (pytest.approx(plan.loss_mse),)


def test_a_head_is_the_last_op_outside_of_layers():
    assert head_of(model(3, EMBEDDING, HEAD)[0]) == "m.z_head"
    assert head_of(model(3)[0]) is None
    product = Op("m.z_head", "bgemm", 1, 4, 1)
    assert head_of(model(3, product)[0]) is None


def test_ends_by_hand():
    graph, gains, seen = model(4, HEAD)
    for gain, expected in (
        (2.0, ["m.layers.1.q"]),
        (5.5, ["m.layers.1.q", "m.layers.1.qk", "m.layers.2.q", "m.layers.2.qk"]),
        (8.0, ["m.layers.0.q", "m.layers.1.q", "m.layers.1.qk", "m.layers.2.q", "m.layers.2.qk"]),
    ):
        plan = baseline_gaining(gains, seen, "ends", gain, graph=graph)
        assert plan.quantized == tuple(expected)
    everything = baseline_gaining(gains, seen, "ends", 13.0, graph=graph)
    assert "m.z_head" in everything.quantized


@pytest.mark.parametrize("layers", [2, 5, 6])
def test_ends_keeps_the_first_and_the_last_layers_longest(layers):
    graph, gains, seen = model(layers, EMBEDDING, HEAD)
    for gain in np.linspace(0.5, gains.largest, 23):
        plan = baseline_gaining(gains, seen, "ends", gain, graph=graph)
        assert gain <= plan.gain < gain + 2.0
        counts = [sum(op.startswith(f"m.layers.{i}.") for op in plan.quantized) for i in range(layers)]
        for i, count in enumerate(counts):
            nearer = [
                c for j, c in enumerate(counts) if abs(j - (layers - 1) / 2) < abs(i - (layers - 1) / 2)
            ]
            assert not count or all(other == 2 for other in nearer)
        if {"m.first", "m.z_head"} & set(plan.quantized):
            assert counts == [2] * layers


def test_a_threshold_stops_ends_where_it_stops_prefix():
    """The ops cost 1 to 7, all 28, of which 0.36 is 10: 3 and 4 of the middle, 1 and 2; 5 is too much."""
    graph, gains, seen = model(3, HEAD)
    every = baseline(gains, seen, "uniform", 1.0)
    plan = baseline(gains, seen, "ends", 0.6 * every.nrmse, graph=graph)
    assert plan.loss_mse == pytest.approx(every.loss_mse * 10 / 28)
    assert plan.quantized == tuple(f"m.layers.{i}.{op}" for i in (0, 1) for op in ("q", "qk"))


def test_the_frontier_has_both_where_there_are_layers():
    graph, gains, seen = model(3, HEAD)
    with_layers = frontier(gains, seen, points=3, draws=1, graph=graph).curves
    assert [curve.strategy for curve in with_layers] == ["ip_mse", "prefix", "random", "ends", "practice"]
    assert len(with_layers[-1].gain) == 1
    flat, gains, seen = model(0, EMBEDDING, HEAD)
    assert [curve.strategy for curve in frontier(gains, seen, points=3, draws=1, graph=flat).curves] == [
        "ip_mse",
        "prefix",
        "random",
    ]
    assert baseline(gains, seen, "practice", 1.0, graph=flat).quantized == ("m.first",)


def test_mistakes():
    graph, gains, seen = model(0, EMBEDDING, HEAD)
    with pytest.raises(
        InputError, match="ends goes by the layers of a model; give its graph, from `capture`"
    ):
        baseline(gains, seen, "ends", 1.0)
    with pytest.raises(InputError, match="first and the last layers, and this model has no repeated layers"):
        baseline(gains, seen, "ends", 1.0, graph=graph)
    with pytest.raises(InputError, match="unknown baseline 'practise'; did you mean 'practice'"):
        baseline(gains, seen, "practise", 1.0, graph=graph)
