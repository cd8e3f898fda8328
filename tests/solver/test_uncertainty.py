"""Intervals of predicted loss MSE, against chi-square tables and simulations; stability of known plans."""

from dataclasses import replace

import numpy as np
import pytest

from inc_mp_plugin.core.costs import Costs, costs_of
from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver.limits import Limits
from inc_mp_plugin.solver.optimum import tangent
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.ties import constrained_program
from inc_mp_plugin.solver.uncertainty import loss_interval, plan_rows, plan_shift, resampled, stability

LOW = "fp8_e4m3"
ROWS = np.arange(12.0).reshape(3, 4)
SEEN = LossModel(
    Sensitivity(
        ("a", "b", "c", "d"),
        np.ones(3),
        ROWS,
        np.zeros((3, 4)),
        {"fp8_e4m3": 100 + ROWS, "fp8_e5m2": 200 + ROWS},
    ),
    "measured",
)


def test_losses_of_samples_by_hand():
    formats = {"a": "bf16", "b": "fp8_e4m3", "d": "fp8_e5m2"}
    assert plan_rows(SEEN, formats, "bf16").tolist() == [101 + 203, 105 + 207, 109 + 211]
    assert plan_rows(SEEN, {}, "bf16").tolist() == [0, 0, 0]


def test_equal_samples_give_the_chi_square_table():
    """The mean of 64 squared normals: quantiles of chi-square with 64 degrees of freedom, over 64."""
    lower, upper = loss_interval(np.full(64, 5.0))
    assert lower == pytest.approx(5 * 43.776 / 64, rel=0.05)
    assert upper == pytest.approx(5 * 88.004 / 64, rel=0.05)
    lower, upper = loss_interval(np.full(64, 5.0), 0.9)
    assert lower == pytest.approx(5 * 46.595 / 64, rel=0.05)
    assert upper == pytest.approx(5 * 83.675 / 64, rel=0.05)


@pytest.mark.parametrize("stderr", [0.0, 0.1], ids=["drift known", "drift uncertain"])
def test_drift_against_a_plain_simulation(stderr):
    """Equal samples: the mean of (sqrt(d) e + k d)^2, with as many draws as it takes."""
    d, k, n = 2.0, 0.5, 50
    draw = np.random.default_rng(7)
    drifts = draw.normal(k, stderr, (20_000, 1))
    simulated = ((np.sqrt(d) * draw.standard_normal((20_000, n)) + d * drifts) ** 2).mean(axis=1)
    interval = loss_interval(np.full(n, d), 0.95, Drift(k * d, stderr * d))
    assert interval == pytest.approx(np.quantile(simulated, [0.025, 0.975]), rel=0.05)


def test_intervals_cover_fresh_samples():
    """Calibration and measurement on samples of one distribution: 95 % intervals hold it 95 times."""
    draw = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        predicted, fresh = draw.lognormal(0.0, 0.5, (2, 64))
        lower, upper = loss_interval(predicted)
        covered += lower <= (fresh * draw.standard_normal(64) ** 2).mean() <= upper
    assert 180 <= covered <= 198


@pytest.mark.parametrize(("predicted", "measured"), [(256, 32), (32, 256), (64, 64)])
def test_the_interval_is_that_of_the_samples_that_are_measured(predicted, measured):
    """Equal samples: chi-square with as many degrees of freedom as are measured, however many predicted."""
    lower, upper = loss_interval(np.full(predicted, 5.0), measured=measured)
    drawn = np.random.default_rng(3).chisquare(measured, 100_000) / measured
    assert (lower, upper) == pytest.approx(5.0 * np.quantile(drawn, [0.025, 0.975]), rel=0.05)


def test_several_plans_at_once_are_each_alone():
    samples = np.random.default_rng(2).random((16, 3))
    together = loss_interval(samples, 0.8, Drift(2.0, 0.3))
    for column in range(3):
        alone = loss_interval(samples[:, column], 0.8, Drift(2.0, 0.3))
        assert alone == pytest.approx((together.low[column], together.high[column]))


def test_nothing_lowered_is_certain():
    assert loss_interval(np.zeros(8), 0.95, Drift(0.0, 0.0)) == (0.0, 0.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_levels_that_are_no_probability(level):
    with pytest.raises(InputError, match="confidence is .*; it must lie between 0 and 1, such as 0.95"):
        loss_interval(np.ones(3), level)


def test_resampling_takes_whole_samples():
    redrawn = resampled(costs_of(SEEN), seed=3).sensitivity
    rows = {tuple(row) for row in ROWS}
    assert redrawn.samples == 3
    assert {tuple(row) for row in redrawn.input} <= rows
    assert (redrawn.rounding["fp8_e5m2"] == 200 + redrawn.input).all()
    assert (resampled(costs_of(SEEN), seed=3).sensitivity.input == redrawn.input).all()


def test_shifts_by_hand():
    """By the loss MSE itself, or by the KL divergence of each op where that was measured."""
    rows = np.array([[0.5, 0.25]])
    arrays = Sensitivity(("a", "b"), np.ones(1), rows, 0 * rows, {LOW: rows}, Drift(8.0, 1.0))
    assert LossModel(arrays, "measured").shifts(LOW) == {"a": 4.0, "b": 2.0}
    assert LossModel(arrays).shifts(LOW) == {"a": 0.0, "b": 0.0}
    nats = {LOW: np.array([[1.0, 5.0]])}
    kl = replace(arrays, rounding=nats, yardstick="kl", tokens=np.array([4.0]))
    losses = LossModel(replace(arrays, kl=kl), "measured")
    assert losses.shifts(LOW) == {"a": 2.0, "b": 10.0}
    assert losses.with_shift(0.75, 12.0) == 0.75 + 144.0
    assert plan_shift(losses, {"a": LOW, "b": "bf16"}, "bf16") == Drift(2.0, 0.25)


@pytest.mark.parametrize("loss_mse", [0.0, 1e-18, 1e-3, 0.3, 0.3 * (1 + 1e-15), 1.0, 7.0, 1e6])
@pytest.mark.parametrize("drift", [0.0, 1e-3, 30.0])
def test_what_a_cache_and_a_shift_leave_is_close(loss_mse, drift):
    """The capacity of the tangent at a shift, for a budget below, next to and above what the cache takes."""
    rows = np.full((1, 1), 0.3)
    second = {"input": rows, LOW: rows}
    arrays = Sensitivity(("a",), np.ones(1), rows, 0 * rows, {LOW: rows}, Drift(drift, 0.0), second)
    losses = LossModel(arrays, "measured", frozenset({"a"}))
    assert losses.cache_row_costs.mean() == 0.3
    group = GroupGains(("a",), (("bf16",), (LOW,)), (0.0, 1.0), (0.0, 0.0))
    gains = Gains("memory", "byte", "exact", "bf16", (group,))
    program = constrained_program(gains, losses, Demands(cached=frozenset({"a"})))
    shift = 0.7
    row = tangent(program, Limits(tau=loss_mse**0.5), shift)
    budget = Limits(tau=loss_mse**0.5).budget(program.costs, "loss")
    # On the tangent, with the shift itself, what is left is exactly what the budget leaves.
    left = float(row.capacity) - 2 * (shift + losses.cache_shift) * shift
    assert losses.with_shift(left, shift) == pytest.approx(budget, rel=1e-9, abs=1e-12)


def instance(rows):
    ops = tuple(f"op{i}" for i in range(rows.shape[1]))
    groups = tuple(GroupGains((op,), (("bf16",), (LOW,)), (0.0, 1.0), (0.0, 0.0)) for op in ops)
    sensitivity = Sensitivity(ops, np.ones(len(rows)), rows, np.zeros_like(rows))
    return Gains("memory", "byte", "exact", "bf16", groups), sensitivity


def stability_of(rows, tau):
    gains, sensitivity = instance(rows)
    plan = solve(gains, sensitivity, tau)
    return stability(plan, Costs(sensitivity), lambda other: solve(gains, other, tau), 50)


def test_equal_samples_never_change_the_plan():
    rows = np.tile([1.0, 2.0, 4.0], (10, 1))
    result = stability_of(rows, (3.5 * alpha(LOW)) ** 0.5)
    assert (result.changed, result.gain_low, result.gain_high) == ({}, result.gain, result.gain)
    assert result.doubtful == ()


def test_a_choice_between_equals_is_doubtful():
    """Two ops of the same mean, of which the loss budget allows one; a third that is always cheap."""
    losses = np.random.default_rng(0).lognormal(0.0, 1.0, 20)
    rows = np.stack([losses, losses[::-1], np.full(20, 1e-3)], axis=1)
    result = stability_of(rows, (1.3 * losses.mean() * alpha(LOW)) ** 0.5)
    assert set(result.doubtful) == {"op0", "op1"}
    assert "op2" not in result.changed
    assert result.gain == 2.0
    assert result.gain_low >= 1.0


def test_more_samples_make_it_surer():
    draw = np.random.default_rng(1)
    prices = np.arange(1.0, 13.0)
    few, many = (
        stability_of(prices * draw.lognormal(0.0, 1.0, (n, 12)), (40 * alpha(LOW)) ** 0.5) for n in (8, 2000)
    )
    assert sum(many.changed.values()) < sum(few.changed.values())
    assert many.gain_high - many.gain_low <= few.gain_high - few.gain_low
