"""Validation arithmetic on losses made up by hand."""

import math

import numpy as np
import pytest

from inc_mp_plugin.core.divergence import Divergence
from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.evaluate.interval import mean_ratio_interval, measured_values
from inc_mp_plugin.evaluate.validate import KLMeasurement, random_plans, validate

SHIFTS = {"a": np.array([0.1, -0.1]), "b": np.array([0.0, 0.2]), "c": np.array([0.3, 0.3])}
OTHERS = [("a",), ("b",), ("c",)]


def measure(ops):
    return np.array([2.0, 4.0]) + sum((SHIFTS[op] for op in ops), np.zeros(2))


def predict(of_op):
    def whole(ops):
        total = sum(of_op[op] for op in ops)
        return total, Interval(0.9 * total, 1.1 * total)

    return whole


def test_by_hand():
    predicted = predict({"a": 0.02, "b": 0.02, "c": 0.18})
    validation = validate(measure, predicted, ["a", "b"], 0.1, others=OTHERS)
    assert validation.loss_ms == 10.0
    assert validation.plan.predicted == pytest.approx(0.04)
    assert validation.plan.measured == pytest.approx((0.1**2 + 0.1**2) / 2)
    assert validation.nrmse == pytest.approx(math.sqrt(0.01 / 10))
    assert [p.measured for p in validation.points] == pytest.approx([0.01, 0.02, 0.09])
    assert validation.ratio == pytest.approx(0.22 / 0.12)
    assert [p.covered for p in validation.points] == [False, True, False]
    assert validation.covered == 1
    logs = np.log([[0.02, 0.02, 0.18], [0.01, 0.02, 0.09]])
    assert validation.log_correlation == pytest.approx(np.corrcoef(logs)[0, 1])


def test_intervals_of_what_was_measured():
    """As `measured_nrmse` gives them, from enough samples; each op lowers what was drawn for it."""
    draw = np.random.default_rng(0)
    base, shifts = draw.uniform(2, 3, 32), dict(zip("abc", draw.normal(0, 0.1, (3, 32)), strict=True))

    def losses(ops):
        return base + sum((shifts[op] for op in ops), np.zeros(32))

    predicted = predict({"a": 0.01, "b": 0.02, "c": 0.03})
    validation = validate(losses, predicted, ["a", "b"], 0.1, others=OTHERS, level=0.8)
    measured = measured_values(losses("ab"), base, 0.8)
    assert (validation.nrmse, validation.nrmse_interval) == (measured.nrmse, measured.interval)
    assert (validation.verdict, validation.verify_confidence) == ("held", 0.8)
    for point in validation.points:
        changes = sum(shifts[op] for op in point.quantized) ** 2
        assert point.measured_interval == pytest.approx(mean_ratio_interval(changes, np.ones(32), 0.8))
        assert point.measured_interval.low < point.measured < point.measured_interval.high


def test_errors():
    predicted = predict(dict.fromkeys(SHIFTS, 1.0))
    with pytest.raises(InputError, match="no held-out sample"):
        validate(lambda _: np.array([]), predicted, [], 0.1, others=[])
    with pytest.raises(NonFiniteError, match="NaN or infinite with 1 ops quantized"):
        validate(lambda ops: measure(ops) * (np.nan if "b" in ops else 1.0), predicted, ["b"], 0.1, others=[])


def test_random_plans_are_repeatable_and_of_all_sizes():
    ops = [f"op{i}" for i in range(10)]
    plans = random_plans(ops, 200, seed=3)
    assert plans == random_plans(ops, 200, seed=3) != random_plans(ops, 200, seed=4)
    assert {len(plan) for plan in plans} == set(range(1, 11))
    assert all(list(plan) == [op for op in ops if op in plan] for plan in plans)


KL_OF = {"a": 0.001, "b": 0.004, "c": 0.002}


def diverged(ops, scale=1.0):
    """Two samples of 3 and 5 tokens, KL by the ops' sum; the second sample's tokens alone have any."""
    total = 8 * scale * sum(KL_OF[op] for op in ops)
    return Divergence(
        kl=np.array([0.0, total]),
        positions=np.array([3.0, 5.0]),
        flips=np.array([0.0, 2.0]),
        nll=np.array([6.0, 10.4]),
        base_nll=np.array([6.0, 10.0]),
        labels=np.array([3.0, 5.0]),
        p99=0.9,
    )


def test_kl_by_hand():
    kl = KLMeasurement(diverged, predict(KL_OF), 0.01, lambda: 1e-6)
    validation = validate(measure, lambda ops: None, ["a", "b"], None, others=OTHERS, kl=kl)
    assert [point.predicted for point in validation.points] == [None] * 3
    assert (validation.log_correlation, validation.ratio, validation.verdict) == (None, None, "not decided")
    point = validation.plan.kl
    assert (point.predicted, point.measured) == pytest.approx((0.005, 0.005))
    assert point.covered
    assert (point.flips, point.p99) == (0.25, 0.9)
    assert point.perplexity_ratio == pytest.approx(math.exp(0.4 / 8))
    assert [p.kl.measured for p in validation.points] == pytest.approx([0.001, 0.004, 0.002])
    assert validation.kl.log_correlation == pytest.approx(1.0)
    assert validation.kl.ratio == pytest.approx(1.0)
    assert (validation.kl.threshold, validation.kl.floor) == (0.01, 1e-6)
    assert validation.kl_verdict == "not decided"  # two samples give no interval


def test_kl_that_was_not_predicted_or_not_measured():
    unpriced = validate(measure, lambda ops: None, [], 0.1, others=OTHERS, kl=KLMeasurement(diverged))
    assert (unpriced.kl.log_correlation, unpriced.kl.ratio, unpriced.kl.floor) == (None, None, None)
    assert (unpriced.plan.kl.measured, unpriced.plan.kl.predicted) == (0.0, None)
    without = KLMeasurement(lambda ops: None, floor=lambda: pytest.fail("measured a floor"))
    nothing = validate(measure, lambda ops: None, [], 0.1, others=OTHERS, kl=without)
    assert (nothing.kl, nothing.plan.kl, nothing.points[0].kl) == (None, None, None)
