"""The frontier against exhaustive search."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver.frontier import frontier, knee
from inc_mp_plugin.solver.planner import solve

LOW = "fp8_e4m3"


def instance(seed, drift=0.0):
    """Three groups of two ops with gains that do not add up, some of them losses."""
    draw = np.random.default_rng(seed)
    groups = []
    for j in range(3):
        configurations = tuple(itertools.product(("bf16", LOW), repeat=2))
        gain = (0.0, *draw.integers(-2, 9, 3).astype(float).tolist())
        groups.append(GroupGains((f"{j}a", f"{j}b"), configurations, gain, (0.0,) * 4))
    rows = draw.lognormal(0.0, 1.0, (5, 6))
    losses = Sensitivity(
        tuple(op for group in groups for op in group.ops),
        np.full(5, 3.0),
        rows,
        np.zeros((5, 6)),
        {LOW: alpha(LOW) * rows},
        Drift(drift, 0.0),
    )
    return Gains("roofline", "s", "modelled", "bf16", tuple(groups)), LossModel(losses, "measured")


def everything(gains, losses):
    """Gain and loss MSE of every choice."""
    cost = losses.costs(LOW)
    for picks in itertools.product(*(range(len(g.configurations)) for g in gains.groups)):
        gain = sum(g.gain[p] for g, p in zip(gains.groups, picks, strict=True))
        lowered = [
            op
            for g, p in zip(gains.groups, picks, strict=True)
            for op, f in zip(g.ops, g.configurations[p], strict=True)
            if f == LOW
        ]
        first_order = sum(cost[op] for op in lowered)
        yield gain, first_order + (losses.drift.value * first_order) ** 2


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("drift", [0.0, 40.0])
def test_every_point_is_the_least_loss_for_its_gain(seed, drift):
    gains, losses = instance(seed, drift)
    result = frontier(gains, losses, points=12, draws=3)
    exact, choices = result.curves[0], list(everything(gains, losses))
    for gain, loss_mse in zip(exact.gain, exact.loss_mse, strict=True):
        assert loss_mse == pytest.approx(min(d for g, d in choices if g >= gain - 1e-9))
    assert exact.gain[0] == exact.loss_mse[0] == exact.ops[0] == 0
    assert exact.gain[-1] == pytest.approx(max(g for g, _ in choices)) == pytest.approx(result.largest_gain)
    assert list(exact.gain) == sorted(set(exact.gain))
    assert list(exact.loss_mse) == sorted(set(exact.loss_mse))
    assert all(lower <= upper for lower, upper in zip(exact.low, exact.high, strict=True))


@pytest.mark.parametrize("seed", range(8))
def test_no_baseline_is_below_it(seed):
    gains, losses = instance(seed)
    result = frontier(gains, losses, points=200, draws=5)
    exact, *others = result.curves
    assert [curve.strategy for curve in others] == ["prefix"] + ["random"] * 5
    for gain in exact.gain:
        for other in others:
            assert (other.least_loss(gain) or math.inf) >= exact.least_loss(gain) - 1e-12


def test_points_that_come_out_the_same_are_merged():
    only = GroupGains(("a",), (("bf16",), (LOW,)), (0.0, 4.0), (0.0, 0.0))
    losses = Sensitivity(("a",), np.ones(2), np.ones((2, 1)), np.zeros((2, 1)))
    result = frontier(Gains("memory", "byte", "exact", "bf16", (only,)), losses, points=50, draws=0)
    assert result.curves[0].gain == (0.0, 4.0)
    assert result.curves[0].ops == (0, 1)


def test_knee_by_hand():
    # NRMSE 0, 0.1, 0.3, 1 of the largest: 0.5 - 0.1, 0.9 - 0.3 and 0 above the line.
    assert knee([0.0, 5.0, 9.0, 10.0], [0.0, 0.01, 0.09, 1.0]) == 2
    assert knee([0.0], [0.0]) == 0


@pytest.mark.parametrize(("points", "draws"), [(1, 1), (0, 1), (5, -1)])
def test_too_few_points(points, draws):
    gains, losses = instance(0)
    with pytest.raises(InputError, match="give at least 2 points and 0 draws"):
        frontier(gains, losses, points=points, draws=draws)


@pytest.mark.parametrize("seed", range(10))
def test_the_threshold_of_a_point_gives_as_much(seed):
    """Both ops of a group read one tensor: of one alone, a program counts more than the prediction."""
    gains, losses = instance(seed)
    shares = np.random.default_rng(seed).lognormal(0.0, 1.0, (5, 6))
    kl = replace(
        losses.sensitivity,
        yardstick="kl",
        tokens=np.ones(5),
        shared={LOW: shares},
        reads=np.array([0, 0, 2, 2, 4, 4]),
    )
    model = KLModel(kl, "measured")
    curve = frontier(gains, model, draws=0).curves[0]
    points = list(zip(curve.gain, curve.loss_mse, curve.needed, strict=True))[1:]
    assert all(needed >= cost * (1 - 1e-12) for _, cost, needed in points)
    assert any(needed > 1.01 * cost for _, cost, needed in points)
    for gain, _, needed in points:
        assert solve(gains, model, kl=needed * (1 + 1e-12)).gain >= gain
