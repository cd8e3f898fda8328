"""Thresholds of the loss and of the KL divergence, together and alone, against all plans."""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver.baselines import BASELINES, baseline
from inc_mp_plugin.solver.frontier import frontier
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.uncertainty import kl_interval, predict

LOW = "fp8_e4m3"
SAMPLES, TOKENS = 12, 8.0


def instance(seed, count=7, drift=0.0):
    """Gains, and costs whose loss MSE and KL divergence have little to do with each other."""
    draw = np.random.default_rng(seed)
    ops = tuple(f"op{i}" for i in range(count))
    groups = tuple(
        GroupGains((op,), (("bf16",), (LOW,)), (0.0, float(gain)), (0.0, 0.0))
        for op, gain in zip(ops, draw.integers(1, 20, count), strict=True)
    )
    loss, nats = draw.lognormal(0.0, 1.0, (2, SAMPLES, count))
    arrays = Sensitivity(ops, np.full(SAMPLES, 2.0), loss, 0 * loss, {LOW: loss}, Drift(drift, 0.0))
    kl = replace(arrays, rounding={LOW: nats}, yardstick="kl", tokens=np.full(SAMPLES, TOKENS))
    costs = Costs(replace(arrays, kl=kl), "measured")
    return Gains("memory", "byte", "exact", "bf16", groups), costs


def every_plan(gains, costs):
    """All plans as (gain, loss MSE, KL): sums of op by op, the squared shift on top."""
    loss = costs.sensitivity.rounding[LOW].mean(axis=0)
    nats = costs.sensitivity.kl.rounding[LOW].mean(axis=0) / TOKENS
    gain = np.array([group.gain[1] for group in gains.groups])
    for chosen in itertools.product((0, 1), repeat=len(gain)):
        shift = costs.loss.drift.value * (nats @ chosen)  # of either sign
        yield gain @ chosen, loss @ chosen + shift**2, nats @ chosen


def thresholds(gains, costs, tau_share, kl_share):
    _, loss, nats = max(every_plan(gains, costs))
    return math.sqrt(tau_share * loss / 4.0), kl_share * nats


shares = st.floats(0.05, 0.95)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), shares, shares, st.sampled_from([0.0, 0.3, -0.3, 3.0]))
def test_the_most_gain_within_both(seed, tau_share, kl_share, drift):
    gains, costs = instance(seed, drift=drift)
    tau, kl = thresholds(gains, costs, tau_share, kl_share)
    plan = solve(gains, costs, tau, kl=kl)
    legal = [g for g, d, nats in every_plan(gains, costs) if d <= tau**2 * 4.0 and nats <= kl]
    assert plan.gain == max(legal)
    assert plan.predicted_kl <= kl * (1 + 1e-12)
    assert plan.loss_mse <= tau**2 * 4.0 * (1 + 1e-12)
    assert (plan.kl, plan.tau, plan.constraint) == (kl, tau, "kl")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), shares, st.sampled_from([0.0, 0.3, -0.3, 3.0]))
def test_the_most_gain_within_each(seed, share, drift):
    gains, costs = instance(seed, drift=drift)
    tau, kl = thresholds(gains, costs, share, share)
    within_kl, within_loss = solve(gains, costs, kl=kl), solve(gains, costs, tau)
    plans = list(every_plan(gains, costs))
    assert within_kl.gain == max(g for g, _, nats in plans if nats <= kl)
    assert within_loss.gain == max(g for g, d, _ in plans if d <= tau**2 * 4.0)
    assert (within_kl.constraint, within_loss.constraint) == ("kl", "loss")
    assert within_loss.kl is None
    # The other yardstick is predicted all the same.
    assert within_loss.predicted_kl in [pytest.approx(nats) for _, _, nats in plans]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), shares, st.sampled_from([0.0, 0.3, -0.3, 3.0]))
def test_the_least_of_each_for_a_gain(seed, share, drift):
    gains, costs = instance(seed, drift=drift)
    needed = Fraction(str(share)) * int(sum(group.gain[1] for group in gains.groups))
    plans = [plan for plan in every_plan(gains, costs) if plan[0] >= needed]
    kl = solve(gains, costs, gain_fraction=share)
    loss = solve(gains, costs, gain_fraction=share, constraint="loss")
    assert kl.predicted_kl == pytest.approx(min(nats for _, _, nats in plans))
    least = min(d for _, d, _ in plans)
    assert loss.loss_mse == pytest.approx(least, rel=1e-7)
    assert (loss.gap, loss.status) == (0.0, "proved optimal")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), shares, shares, st.sampled_from([0.0, 1.0]))
def test_the_least_kl_for_a_gain_within_tau(seed, share, tau_share, drift):
    """The program has two rows where the plan of least KL exceeds tau."""
    gains, costs = instance(seed, drift=drift)
    tau, _ = thresholds(gains, costs, tau_share, 1.0)
    needed = Fraction(str(share)) * int(sum(group.gain[1] for group in gains.groups))
    legal = [nats for gain, d, nats in every_plan(gains, costs) if gain >= needed and d <= tau**2 * 4.0]
    try:
        plan = solve(gains, costs, tau, gain_fraction=share, constraint="kl")
    except InfeasibleError:
        assert not legal
    else:
        assert plan.predicted_kl == pytest.approx(min(legal))


def test_what_was_not_measured_is_said():
    gains, costs = instance(0)
    loss = Costs(replace(costs.sensitivity, kl=None), "measured")
    kl = Costs(costs.sensitivity.kl, "measured")
    with pytest.raises(InputError, match="of the KL divergence were not measured; `inc-mp tune` with kl"):
        solve(gains, loss, kl=0.1)
    with pytest.raises(InputError, match="of the loss were not measured; `inc-mp tune` with tau"):
        solve(gains, kl, 0.1)
    with pytest.raises(InputError, match="constraint=loss"):
        solve(gains, kl, gain_fraction=0.5, constraint="loss")
    assert solve(gains, kl, gain_fraction=0.5).constraint == "kl"
    assert solve(gains, loss, gain_fraction=0.5).constraint == "loss"
    plan = solve(gains, kl, kl=1.0)
    assert (plan.tau, plan.loss_mse, plan.nrmse, plan.interval) == (None, None, None, None)


@pytest.mark.parametrize("kl", [0.0, -1.0, math.nan, math.inf, "much", True])
def test_thresholds_that_are_none(kl):
    gains, costs = instance(0)
    with pytest.raises(InputError, match="kl is .*; it must be a number above 0 .*, such as 0.001"):
        solve(gains, costs, kl=kl)


def test_an_impossible_pair_names_what_can_be_met():
    gains, costs = instance(1)
    _, loss, nats = max(every_plan(gains, costs))
    with pytest.raises(InfeasibleError, match="within kl .*; the least kl that allows it is") as refused:
        solve(gains, costs, kl=nats / 100, gain_fraction=0.9)
    least = float(str(refused.value).rsplit(" ", 1)[1])
    assert solve(gains, costs, kl=least, gain_fraction=0.9).predicted_kl <= least
    with pytest.raises(InfeasibleError, match="no plan meets all that is asked for"):
        solve(gains, costs, math.sqrt(loss / 4.0) / 100, gain_fraction=0.9, constraint="kl")


@pytest.mark.parametrize("strategy", BASELINES)
def test_baselines_keep_to_kl(strategy):
    gains, costs = instance(3)
    _, _, most = max(every_plan(gains, costs))
    plan = baseline(gains, costs, strategy, kl=most / 2)
    assert plan.predicted_kl <= most / 2 or strategy == "uniform"
    both = baseline(gains, costs, strategy, 1e-3, kl=most / 2)
    assert not both.quantized or strategy == "uniform"


def test_a_frontier_of_kl():
    gains, costs = instance(4)
    curve = frontier(gains, costs, yardstick="kl", points=6, draws=2)
    assert curve.yardstick == "kl"
    assert curve.threshold(0.25) == 0.25
    plans = list(every_plan(gains, costs))
    exact = curve.curves[0]
    for gain, nats in zip(exact.gain, exact.loss_mse, strict=True):
        assert nats == pytest.approx(min(kl for g, _, kl in plans if g >= gain - 1e-9))
    assert all(
        low <= value <= high for low, value, high in zip(exact.low, exact.loss_mse, exact.high, strict=True)
    )


def test_the_interval_against_a_plain_bootstrap():
    """Ragged rows: the KL of a set is a ratio of sums, over tokens."""
    draw = np.random.default_rng(0)
    tokens = draw.integers(5, 50, 40).astype(float)
    nats = draw.gamma(2.0, 1.0, 40) * tokens
    arrays = Sensitivity(
        ("a",),
        np.ones(40),
        nats[:, None],
        0 * nats[:, None],
        {LOW: nats[:, None]},
        yardstick="kl",
        tokens=tokens,
    )
    value, interval = predict(Costs(arrays, "measured").kl, {"a": LOW}, "bf16", measured=40)
    assert value == pytest.approx(nats.sum() / tokens.sum())
    means = []
    for _ in range(4000):
        ours, fresh = draw.integers(0, 40, (2, 40))
        predicted, deviation = (nats[rows].sum() / tokens[rows].sum() for rows in (ours, fresh))
        means.append(predicted * deviation / value)
    assert interval == pytest.approx(np.quantile(means, [0.025, 0.975]), rel=0.03)


@pytest.mark.parametrize(
    ("rows", "count", "enough"), [("sample", 7, False), ("sample", 8, True), ("batch", 15, False)]
)
def test_too_few_rows_have_no_interval_and_no_confidence(rows, count, enough):
    gains, costs = instance(5)
    kl = replace(costs.sensitivity.kl, rows=rows).take(np.arange(count) % SAMPLES)
    interval = kl_interval(np.ones(count), kl, 0.95)
    assert (interval is not None) == enough
    plan = solve(gains, Costs(kl, "measured"), kl=0.5)
    assert (plan.kl_interval is not None) == enough
    if not enough:
        with pytest.raises(InputError, match=f"confidence needs .* and there are {count}; give more samples"):
            solve(gains, Costs(kl, "measured"), kl=0.5, confidence=0.95)


def test_confidence_keeps_the_upper_end_within_kl():
    gains, costs = instance(6, count=30)
    kl = 0.4 * float(costs.sensitivity.kl.rounding[LOW].mean(axis=0).sum() / TOKENS)
    sure, plain = solve(gains, costs, kl=kl, confidence=0.95), solve(gains, costs, kl=kl)
    assert sure.kl_interval.high <= kl < plain.kl_interval.high
    assert sure.correction < 1.0
    assert sure.gain <= plain.gain
