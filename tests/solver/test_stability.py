"""Whether other samples would give another plan, on cases where the answer is known."""

import numpy as np

from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.stability import stability

LOW = "fp8_e4m3"


def instance(rows):
    ops = tuple(f"op{i}" for i in range(rows.shape[1]))
    groups = tuple(GroupGains((op,), (("bf16",), (LOW,)), (0.0, 1.0), (0.0, 0.0)) for op in ops)
    seen = Sensitivity(ops, np.ones(len(rows)), rows, np.zeros_like(rows))
    return Gains("memory", "byte", "exact", "bf16", groups), seen


def found(rows, tau):
    gains, seen = instance(rows)
    return stability(solve(gains, seen, tau), LossModel(seen), lambda other: solve(gains, other, tau), 50)


def test_equal_samples_never_change_the_plan():
    rows = np.tile([1.0, 2.0, 4.0], (10, 1))
    seen = found(rows, (3.5 * alpha(LOW)) ** 0.5)
    assert (seen.changed, seen.gain_low, seen.gain_high) == ({}, seen.gain, seen.gain)
    assert seen.doubtful == ()


def test_a_choice_between_equals_is_doubtful():
    """Two ops of the same mean, of which the loss budget allows one; a third that is always cheap."""
    one = np.random.default_rng(0).lognormal(0.0, 1.0, 20)
    rows = np.stack([one, one[::-1], np.full(20, 1e-3)], axis=1)
    seen = found(rows, (1.3 * one.mean() * alpha(LOW)) ** 0.5)
    assert set(seen.doubtful) == {"op0", "op1"}
    assert "op2" not in seen.changed
    assert seen.gain == 2.0
    assert seen.gain_low >= 1.0


def test_more_samples_make_it_surer():
    draw = np.random.default_rng(1)
    prices = np.arange(1.0, 13.0)
    few, many = (
        found(prices * draw.lognormal(0.0, 1.0, (n, 12)), (40 * alpha(LOW)) ** 0.5) for n in (8, 2000)
    )
    assert sum(many.changed.values()) < sum(few.changed.values())
    assert many.gain_high - many.gain_low <= few.gain_high - few.gain_low
