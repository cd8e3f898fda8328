"""Demands in the program: against exhaustive search over formats of ops."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import Demands, Tie
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline, baseline_curve
from inc_mp_plugin.solver.frontier import frontier
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.program import make_program
from inc_mp_plugin.solver.ties import constrained, tie_costs

OPS = ("q", "k", "v", "o", "up")
BASE, LOW = "bf16", "fp8_e4m3"


def single(gain):
    return Gains(
        "memory",
        "byte",
        "exact",
        BASE,
        tuple(
            GroupGains((op,), ((BASE,), (LOW,)), (0.0, c), (0.0, 0.0))
            for op, c in zip(OPS, gain, strict=True)
        ),
    )


def grouped(gain):
    """{q, k, v} measured together, with an interaction; {o} and {up} alone."""
    together = tuple(itertools.product((BASE, LOW), repeat=3))
    shared = tuple(
        sum(c for c, f in zip(gain, formats, strict=False) if f == LOW)
        * (1.1 if formats.count(LOW) == 3 else 1.0)
        for formats in together
    )
    rest = tuple(
        GroupGains((op,), ((BASE,), (LOW,)), (0.0, c), (0.0, 0.0))
        for op, c in zip(OPS[3:], gain[3:], strict=True)
    )
    return Gains(
        "empirical_time",
        "s",
        "measured",
        BASE,
        (GroupGains(OPS[:3], together, shared, (0.0,) * 8), *rest),
    )


def seen(costs):
    return Sensitivity(OPS, np.ones(1), np.zeros((1, 5)), np.array([costs]))


def total(gains, formats):
    return sum(
        group.gain[group.configurations.index(tuple(formats[op] for op in group.ops))]
        for group in gains.groups
    )


def legal(formats, demands):
    return (
        all(len({formats[op] for op in tie.ops}) == 1 for tie in demands.ties)
        and all(formats[op] == BASE for op in demands.kept)
        and all(formats[op] != BASE for op in demands.lowered)
    )


def best(gains, sensitivity, demands, capacity):
    """Largest gain by trying every choice of formats."""
    loss = LossModel(sensitivity).costs(LOW)
    gain = [-math.inf]
    for choice in itertools.product((BASE, LOW), repeat=len(OPS)):
        formats = dict(zip(OPS, choice, strict=True))
        spent = math.fsum(loss[op] for op in OPS if formats[op] == LOW)
        if legal(formats, demands) and spent <= capacity:
            gain.append(total(gains, formats))
    return max(gain)


QKV = Tie(("q", "k", "v"), "one qkv_proj")
DEMANDS = {
    "none": Demands(),
    "a tie": Demands(("t",), ties=(QKV,)),
    "two ties": Demands(("t",), ties=(QKV, Tie(("o", "up"), "odd"))),
    "kept": Demands(("t",), ties=(QKV,), kept={"o": "no"}),
    "lowered": Demands(("t",), lowered={"k": "the cache"}),
}
numbers = st.lists(st.floats(0.01, 10.0), min_size=5, max_size=5)


@pytest.mark.parametrize("build", [single, grouped])
@pytest.mark.parametrize("demands", DEMANDS.values(), ids=DEMANDS.keys())
@settings(max_examples=25, deadline=None)
@given(gain=numbers, costs=numbers, tau=st.floats(0.01, 2.0))
def test_the_plan_is_the_best_of_the_legal_ones(build, demands, gain, costs, tau):
    gains, sensitivity = build(gain), seen(costs)
    largest = best(gains, sensitivity, demands, tau**2 * sensitivity.loss_ms)
    if largest == -math.inf:
        with pytest.raises(InfeasibleError, match="the least tau that can be met is"):
            solve(gains, sensitivity, tau, demands=demands)
        return
    plan = solve(gains, sensitivity, tau, demands=demands)
    assert legal(plan.formats, demands)
    assert plan.gain == pytest.approx(largest, rel=1e-9, abs=1e-12)
    assert plan.targets == demands.targets


def test_the_least_tau_named_can_be_met():
    gains, sensitivity, demands = single([1.0] * 5), seen([1.0] * 5), DEMANDS["lowered"]
    with pytest.raises(InfeasibleError) as refused:
        solve(gains, sensitivity, 1e-6, demands=demands)
    least = float(str(refused.value).rsplit(" ", 1)[1])
    assert solve(gains, sensitivity, least * 1.000001, demands=demands).quantized == ("k",)
    with pytest.raises(InfeasibleError):
        solve(gains, sensitivity, least * 0.9999, demands=demands)


def test_a_confident_plan_with_a_fixed_op_says_what_can_be_met():
    gains, sensitivity, demands = single([1.0] * 5), seen([1.0] * 5), DEMANDS["lowered"]
    least = solve(gains, sensitivity, 10.0, demands=demands, gain_fraction=1e-9)
    with pytest.raises(InfeasibleError, match="at a confidence of 0.9"):
        solve(gains, sensitivity, least.nrmse * 1.0001, confidence=0.9, demands=demands)


def test_the_cost_of_a_tie_by_hand():
    """Alone q is worth lowering, 3 for 1; tied to k and v it is 5 for 21, of a budget of 2.5."""
    gains = single([3.0, 1.0, 1.0, 2.0, 1.0])
    sensitivity = seen([1.0, 10.0, 10.0, 1.0, 1.0])
    loss = LossModel(sensitivity).costs(LOW)
    unit = loss["o"]
    tau = math.sqrt(2.5 * unit)
    free, tied = solve(gains, sensitivity, tau), solve(gains, sensitivity, tau, demands=DEMANDS["a tie"])
    assert (free.quantized, tied.quantized) == (("o", "q"), ("o", "up"))
    # The relaxed program spends what o and up leave on a part of the three: 5 / 21 per unit is the price.
    (cost,) = tied.ties
    assert (cost.ops, cost.why) == (QKV.ops, QKV.why)
    assert cost.cost == pytest.approx(3.0 - 5 / 21)
    assert free.gain - tied.gain == pytest.approx(2.0)


def test_a_tie_costs_nothing_where_everything_is_lowered():
    gains, sensitivity = single([1.0] * 5), seen([1e-9] * 5)
    plan = solve(gains, sensitivity, 1.0, demands=DEMANDS["two ties"])
    assert plan.quantized == tuple(sorted(OPS))
    assert [tie.cost for tie in plan.ties] == [0.0, 0.0]


def test_costs_of_ties_do_not_go_below_zero():
    gains = grouped([1.0, 2.0, 3.0, 4.0, 5.0])
    costs = tie_costs(gains, DEMANDS["two ties"], lambda group: max(group.gain))
    assert all(cost >= 0.0 for _, cost in costs)


def test_many_small_groups_become_one_with_two_configurations():
    ops = [f"e{i}" for i in range(400)]
    groups = tuple(GroupGains((op,), ((BASE,), (LOW,)), (0.0, 1.0), (0.0, 0.5)) for op in ops)
    tied = constrained(
        Gains("memory", "byte", "exact", BASE, groups), Demands(ties=(Tie(tuple(ops), "experts"),))
    )
    (group,) = tied.groups
    assert [set(c) for c in group.configurations] == [{BASE}, {LOW}]
    assert group.gain == (0.0, 400.0)
    assert group.stderr == (0.0, pytest.approx(10.0))


def test_a_tied_op_without_a_sensitivity_keeps_its_tie_in_the_base_format():
    gains, sensitivity = single([1.0] * 5), seen([1e-9] * 5).of(("q", "v", "o", "up"))
    plan = solve(gains, sensitivity, 1.0, demands=DEMANDS["a tie"])
    assert plan.quantized == ("o", "up")


def test_an_op_that_must_be_lowered_and_never_ran():
    sensitivity = seen([1.0] * 5).of(("q", "v", "o", "up"))
    with pytest.raises(InputError, match="'k' must leave the base format, but calibration never ran it"):
        solve(single([1.0] * 5), sensitivity, 1.0, demands=DEMANDS["lowered"])


def test_nothing_priced_that_keeps_to_the_demands():
    only = GroupGains(("q", "k"), ((BASE, BASE), (LOW, BASE)), (0.0, 1.0), (0.0, 0.0))
    gains = Gains("empirical_time", "s", "measured", BASE, (only,))
    with pytest.raises(InputError, match="no priced configuration of q, k can be run by t .the cache"):
        constrained(gains, Demands(("t",), lowered={"k": "the cache"}))


@pytest.mark.parametrize("strategy", ["prefix", "random"])
def test_baselines_lower_ties_whole(strategy):
    gains, sensitivity = single([1.0] * 5), seen([1.0] * 5)
    loss = LossModel(sensitivity).costs(LOW)["q"]
    for seed, count in itertools.product(range(4), range(6)):
        tau = math.sqrt((count + 0.5) * loss)
        plan = baseline(gains, sensitivity, strategy, tau, seed=seed, demands=DEMANDS["a tie"])
        assert legal(plan.formats, DEMANDS["a tie"])
        assert len(plan.quantized) <= count


def test_a_baseline_starts_with_what_must_be_lowered():
    gains, sensitivity = constrained(single([1.0] * 5), DEMANDS["lowered"]), seen([1.0] * 5)
    curve = baseline_curve(make_program(gains, Costs(sensitivity)), "loss", "prefix", 0)
    assert curve.ops == (1, 2, 3, 4, 5)
    assert curve.gain == (1.0, 2.0, 3.0, 4.0, 5.0)
    least = math.sqrt(LossModel(sensitivity).costs(LOW)["k"])
    gains, demands = single([1.0] * 5), DEMANDS["lowered"]
    assert baseline(gains, sensitivity, "prefix", 1.0001 * least, demands=demands).quantized == ("k",)
    with pytest.raises(InfeasibleError, match="what must run in a lower format"):
        baseline(gains, sensitivity, "prefix", 0.9999 * least, demands=demands)


@pytest.mark.parametrize("build", [single, grouped])
@pytest.mark.parametrize("demands", DEMANDS.values(), ids=DEMANDS.keys())
@settings(max_examples=15, deadline=None)
@given(gain=numbers, costs=numbers, seed=st.integers(0, 9))
def test_baselines_keep_to_the_demands(build, demands, gain, costs, seed):
    """Every plan is legal and says what it was held to, and none gains more than the best legal one."""
    gains, sensitivity = build(gain), seen(costs)
    loss = LossModel(sensitivity).costs(LOW)
    forced = math.fsum(loss[op] for op in demands.lowered)
    for strategy, share in itertools.product(("prefix", "random", "uniform"), (0.2, 0.6, 1.1)):
        budget = forced + share * sum(loss.values())
        plan = baseline(gains, sensitivity, strategy, math.sqrt(budget), seed=seed, demands=demands)
        assert legal(plan.formats, demands)
        assert (plan.targets, plan.serving) == (demands.targets, demands.serving)
        assert plan.loss_mse == pytest.approx(math.fsum(loss[op] for op in plan.quantized))
        assert plan.gain <= best(gains, sensitivity, demands, plan.loss_budget * (1 + 1e-9)) * (1 + 1e-9)
    everything = baseline(gains, sensitivity, "uniform", 1.0, demands=demands)
    assert set(everything.quantized) == set(OPS) - set(demands.kept)


@pytest.mark.parametrize("build", [single, grouped])
@pytest.mark.parametrize("demands", DEMANDS.values(), ids=DEMANDS.keys())
@settings(max_examples=15, deadline=None)
@given(gain=numbers, costs=numbers)
def test_the_frontier_is_that_of_the_legal_plans(build, demands, gain, costs):
    gains, sensitivity = build(gain), seen(costs)
    loss = LossModel(sensitivity).costs(LOW)
    everything = [
        (total(gains, formats), math.fsum(loss[op] for op in OPS if formats[op] == LOW))
        for choice in itertools.product((BASE, LOW), repeat=len(OPS))
        if legal(formats := dict(zip(OPS, choice, strict=True)), demands)
    ]
    result = frontier(gains, sensitivity, points=8, draws=2, demands=demands)
    for curve in result.curves:
        for point in zip(curve.gain, curve.loss_mse, strict=True):
            assert any(point == pytest.approx(plan) for plan in everything)
    for reached, spent in zip(result.curves[0].gain, result.curves[0].loss_mse, strict=True):
        assert spent == pytest.approx(min(d for g, d in everything if g >= reached * (1 - 1e-8)))
    assert result.largest_gain == pytest.approx(max(g for g, _ in everything))
