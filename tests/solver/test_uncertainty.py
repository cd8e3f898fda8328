"""Intervals of predicted loss MSE, against chi-square tables and simulated measurements."""

import numpy as np
import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver.uncertainty import loss_interval, resampled, sample_losses_mse

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
    assert sample_losses_mse(SEEN, formats, "bf16").tolist() == [101 + 203, 105 + 207, 109 + 211]
    assert sample_losses_mse(SEEN, {}, "bf16").tolist() == [0, 0, 0]


def test_equal_samples_give_the_chi_square_table():
    """The mean of 64 squared normals: quantiles of chi-square with 64 degrees of freedom, over 64."""
    low, high = loss_interval(np.full(64, 5.0))
    assert low == pytest.approx(5 * 43.776 / 64, rel=0.05)
    assert high == pytest.approx(5 * 88.004 / 64, rel=0.05)
    low, high = loss_interval(np.full(64, 5.0), 0.9)
    assert low == pytest.approx(5 * 46.595 / 64, rel=0.05)
    assert high == pytest.approx(5 * 83.675 / 64, rel=0.05)


@pytest.mark.parametrize("stderr", [0.0, 0.1], ids=["drift known", "drift uncertain"])
def test_drift_against_a_plain_simulation(stderr):
    """Equal samples: the mean of (sqrt(d) e + k d)^2, with as many draws as it takes."""
    d, k, n = 2.0, 0.5, 50
    draw = np.random.default_rng(7)
    drifts = draw.normal(k, stderr, (20_000, 1))
    simulated = ((np.sqrt(d) * draw.standard_normal((20_000, n)) + d * drifts) ** 2).mean(axis=1)
    found = loss_interval(np.full(n, d), 0.95, Drift(k, stderr))
    assert found == pytest.approx(np.quantile(simulated, [0.025, 0.975]), rel=0.05)


def test_intervals_cover_fresh_samples():
    """Calibration and measurement on samples of one distribution: 95 % intervals hold it 95 times."""
    draw = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        predicted, fresh = draw.lognormal(0.0, 0.5, (2, 64))
        low, high = loss_interval(predicted)
        held += low <= (fresh * draw.standard_normal(64) ** 2).mean() <= high
    assert 180 <= held <= 198


@pytest.mark.parametrize(("predicted", "measured"), [(256, 32), (32, 256), (64, 64)])
def test_the_interval_is_that_of_the_samples_that_are_measured(predicted, measured):
    """Equal samples: chi-square with as many degrees of freedom as are measured, however many predicted."""
    low, high = loss_interval(np.full(predicted, 5.0), measured=measured)
    drawn = np.random.default_rng(3).chisquare(measured, 100_000) / measured
    assert (low, high) == pytest.approx(5.0 * np.quantile(drawn, [0.025, 0.975]), rel=0.05)


def test_several_plans_at_once_are_each_alone():
    samples = np.random.default_rng(2).random((16, 3))
    together = loss_interval(samples, 0.8, Drift(2.0, 0.3))
    for column in range(3):
        alone = loss_interval(samples[:, column], 0.8, Drift(2.0, 0.3))
        assert alone == pytest.approx((together.low[column], together.high[column]))


def test_nothing_lowered_is_certain():
    assert loss_interval(np.zeros(8), 0.95, Drift(70.0, 10.0)) == (0.0, 0.0)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.5, 95.0, float("nan")])
def test_levels_that_are_no_probability(level):
    with pytest.raises(InputError, match="confidence is .*; it must lie between 0 and 1, such as 0.95"):
        loss_interval(np.ones(3), level)


def test_resampling_takes_whole_samples():
    again = resampled(SEEN, seed=3).sensitivity
    rows = {tuple(row) for row in ROWS}
    assert again.samples == 3
    assert {tuple(row) for row in again.input} <= rows
    assert (again.rounding["fp8_e5m2"] == 200 + again.input).all()
    assert (resampled(SEEN, seed=3).sensitivity.input == again.input).all()


def test_drift_there_and_back():
    arrays = Sensitivity(("a",), np.ones(1), ROWS[:1, :1], ROWS[:1, :1], {}, Drift(77.0, 9.0))
    drifting = LossModel(arrays, "measured")
    for loss_mse in (0.0, 1e-9, 1e-4, 0.3):
        total = drifting.with_drift(loss_mse)
        assert total == pytest.approx(loss_mse + (77 * loss_mse) ** 2)
        assert drifting.without_drift(total) == pytest.approx(loss_mse)
        assert drifting.with_drift(drifting.without_drift(total)) <= total
    modelled = LossModel(arrays)
    assert modelled.with_drift(0.3) == modelled.without_drift(0.3) == 0.3


@pytest.mark.parametrize("loss_mse", [0.0, 1e-18, 1e-3, 0.3, 0.3 * (1 + 1e-15), 1.0, 7.0, 1e6])
@pytest.mark.parametrize("drift", [0.0, 1e-3, 30.0])
def test_what_a_cache_and_a_drift_leave_is_within_and_close(loss_mse, drift):
    """Of a loss MSE far below that of the cache, next to it, and far above it."""
    rows = np.full((1, 1), 0.3)
    arrays = Sensitivity(
        ("a",),
        np.ones(1),
        rows,
        0 * rows,
        {"fp8_e4m3": rows},
        Drift(drift, 0.0),
        {"input": rows, "fp8_e4m3": rows},
    )
    seen = LossModel(arrays, "measured", frozenset({"a"}))
    assert seen.cache_loss_mse.mean() == 0.3
    spent = seen.without_drift(loss_mse)
    assert seen.with_drift(spent) <= loss_mse
    assert seen.with_drift(spent + 1e-12 * max(1.0, loss_mse)) >= loss_mse
