"""The knapsack over values of EAGL and ALPS, and budgets of cost, against all plans there are."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.plan import OpValues
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.gain.per_op import bit_operation_gains
from inc_mp_plugin.solver.baselines import baseline
from inc_mp_plugin.solver.planner import solve

LOW = "fp8_e4m3"


def gains_of(numbers, cost=None):
    groups = [
        GroupGains((f"op{i}",), (("bf16",), (LOW,)), (0.0, g), (0.0, 0.0)) for i, g in enumerate(numbers)
    ]
    return Gains("memory", "byte", "exact", "bf16", tuple(groups), cost)


def sensitivity_of(totals):
    rows = np.array([totals])
    return Sensitivity(tuple(f"op{i}" for i in range(len(totals))), np.ones(1), rows, np.zeros_like(rows))


def values_of(numbers, method="eagl"):
    return OpValues(method, "bit", {LOW: {f"op{i}": v for i, v in enumerate(numbers)}})


def every_plan(gains, values):
    """Gain and value lost of all sets of lowered ops."""
    for chosen in itertools.product((0, 1), repeat=len(gains)):
        yield (
            math.fsum(g for g, c in zip(gains, chosen, strict=True) if c),
            math.fsum(v for v, c in zip(values, chosen, strict=True) if c),
        )


def lost(plan, values):
    return math.fsum(values[int(op[2:])] for op in plan.quantized)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 50), st.integers(-20, 100), st.integers(0, 30)), min_size=1, max_size=7
    ),
    st.floats(0.01, 1.0),
)
def test_least_value_lost_for_a_wanted_gain(ops, fraction):
    gains, values, totals = (list(map(float, column)) for column in zip(*ops, strict=True))
    plan = solve(
        gains_of(gains), sensitivity_of(totals), gain_fraction=fraction, values=values_of(values, "alps")
    )
    enough = fraction * math.fsum(gains)
    assert plan.gain >= enough * (1 - 1e-12)
    best = min(value for gain, value in every_plan(gains, values) if gain >= enough)
    assert lost(plan, values) == pytest.approx(best, abs=1e-9)
    assert plan.strategy == "alps"


@pytest.mark.parametrize("method", ["eagl", "alps"])
@pytest.mark.parametrize("budget", [0.2, 0.45, 0.7, 0.95, 1.0])
def test_most_value_within_a_budget_of_cost(method, budget):
    numbers, values = [10.0, 20.0, 30.0, 40.0], [1.0, 5.0, 2.0, 4.0]
    plan = solve(
        gains_of(numbers, cost=120.0),
        sensitivity_of([1.0] * 4),
        budget=budget,
        values=values_of(values, method),
    )
    assert 120.0 - plan.gain <= budget * 120.0 + 1e-9
    enough = (1 - budget) * 120.0
    best = min(v for gain, v in every_plan(numbers, values) if gain >= enough - 1e-9)
    assert lost(plan, values) == pytest.approx(best)


@pytest.mark.parametrize("budget", [0.3, 0.6, 0.9])
def test_a_budget_without_values_is_the_least_loss(budget):
    gains, sensitivity = gains_of([10.0, 20.0, 30.0], cost=80.0), sensitivity_of([3.0, 1.0, 2.0])
    plan = solve(gains, sensitivity, budget=budget)
    assert plan.formats == solve(gains, sensitivity, gain_fraction=(1 - budget) * 80.0 / 60.0).formats
    assert plan.strategy == "ip_mse"


def test_values_are_no_losses_that_a_threshold_could_hold():
    with pytest.raises(InputError, match="tau and kl cannot bound the values of eagl, which are no losses"):
        solve(gains_of([1.0]), sensitivity_of([1.0]), 0.1, values=values_of([1.0]))


@pytest.mark.parametrize(
    ("tau", "lowered"),
    [
        (0.05, {"op3"}),
        (0.06, {"op3", "op1"}),
        (0.07, {"op3", "op1", "op0"}),
        (1.0, {"op0", "op1", "op2", "op3"}),
    ],
)
def test_a_threshold_takes_ops_by_value_per_gain(tau, lowered):
    """Rates -0.1, 0.05, 0.1, 0.2 of op3, op1, op2, op0; a loss MSE of 1/768 each, of op2 3/768."""
    gains, sensitivity = gains_of([20.0, 20.0, 30.0, 10.0]), sensitivity_of([1.0, 1.0, 3.0, 1.0])
    plan = baseline(gains, sensitivity, "alps", tau, values=values_of([4.0, 1.0, 3.0, -1.0], "alps"))
    assert set(plan.quantized) == lowered
    assert plan.loss_mse <= tau**2
    assert (plan.strategy, plan.status) == ("alps", "not optimised: ops by value per gain")


def test_ops_without_value_or_gain_are_in_no_order():
    gains, sensitivity = gains_of([20.0, 0.0, 30.0]), sensitivity_of([1.0, 1.0, 1.0])
    values = OpValues("eagl", "bit", {LOW: {"op0": 1.0, "op1": 1.0}})
    assert baseline(gains, sensitivity, "eagl", 1.0, values=values).quantized == ("op0",)
    with pytest.raises(InputError, match="unknown baseline"):
        baseline(gains, sensitivity, "alps", 1.0, values=values)


def test_a_threshold_and_a_wanted_gain_that_values_do_not_meet():
    gains, sensitivity = gains_of([10.0, 20.0]), sensitivity_of([1.0, 1.0])
    with pytest.raises(InfeasibleError, match="the eagl plan does not gain 1 of the largest gain within tau"):
        solve(gains, sensitivity, 0.001, gain_fraction=1.0, values=values_of([1.0, 1.0]))


def test_an_op_without_a_value_stays():
    sensitivity, gains = sensitivity_of([1.0, 1.0]), gains_of([10.0, 20.0])
    values = OpValues("eagl", "bit", {LOW: {"op1": 3.0}})
    assert solve(gains, sensitivity, gain_fraction=0.6, values=values).quantized == ("op1",)
    with pytest.raises(
        InfeasibleError, match="the other ops gain at most 0.6667 of the largest gain, not 0.9"
    ):
        solve(gains, sensitivity, gain_fraction=0.9, values=values)
    forced = Demands((), lowered={"op0": "the cache is FP8"})
    with pytest.raises(InputError, match="eagl has no value for an op among op0"):
        solve(gains, sensitivity, gain_fraction=0.6, values=values, demands=forced)


@pytest.mark.parametrize(
    ("cost", "knobs", "error", "said"),
    [
        (100.0, {"budget": 0.3}, InfeasibleError, "least budget that can be met is 0.4"),
        (None, {"budget": 0.9}, InputError, "do not say what everything costs"),
        (100.0, {"budget": 0.0}, InputError, "above 0 and at most 1"),
        (100.0, {"budget": 1.5}, InputError, "above 0 and at most 1"),
        (100.0, {"budget": 0.9, "gain_fraction": 0.5}, InputError, "give one"),
        (100.0, {}, InputError, "give kl"),
    ],
    ids=["too small", "no cost", "zero", "more than all", "both", "none"],
)
def test_budgets_that_cannot_be(cost, knobs, error, said):
    with pytest.raises(error, match=said):
        solve(gains_of([20.0, 40.0], cost), sensitivity_of([1.0, 1.0]), **knobs)


def test_the_least_budget_can_be_met():
    gains, sensitivity = gains_of([0.1, 0.2, 0.3], cost=1.0), sensitivity_of([1.0] * 3)
    assert len(solve(gains, sensitivity, budget=0.4).quantized) == 3


def test_bit_operations_by_hand():
    """A product of 10 MACs: 160 bit operations in INT4, 40 in INT2; kept ops are no part of it."""
    ops = (Op("first", "conv2d", 1000, 9, 1), Op("a", "conv2d", 10, 9, 1), Op("qk", "bgemm", 5, 0, 1))
    graph = Graph(ops, tuple((op.name,) for op in ops), (), {})
    gains = bit_operation_gains(graph, ("int4", "int2"), kept={"first"})
    assert [group.ops for group in gains.groups] == [("a",), ("qk",)]
    assert [group.gain for group in gains.groups] == [(0.0, 120.0), (0.0, 60.0)]
    assert gains.cost == 240.0
    assert bit_operation_gains(graph).groups[0].gain == (0.0, 1000 * (256 - 64))
