"""Baselines against the plain rule: ops in an order, one more while the loss budget allows."""

import math

import numpy as np
import pytest

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline, baseline_curve, baseline_gaining
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.program import make_program

OPS = tuple("abcdefgh")
PRICES = np.array([4.0, 1.0, 3.0, 2.0, 5.0, 1.0, 2.0, 6.0])
SEEN = Sensitivity(OPS, np.full(2, 10.0), np.stack([PRICES, PRICES]), np.zeros((2, 8)))
LOW = "fp8_e4m3"


def pair(first, second, gain):
    """A group of two ops, in which both together gain more than each alone."""
    configurations = (("bf16", "bf16"), (LOW, "bf16"), ("bf16", LOW), (LOW, LOW))
    return GroupGains((first, second), configurations, (0.0, gain, gain, 3 * gain), (0.0,) * 4)


GAINS = Gains(
    "roofline", "s", "modelled", "bf16", tuple(pair(*OPS[i : i + 2], i + 1.0) for i in (0, 2, 4, 6))
)


def tau_for(price):
    """The threshold whose budget is this much sensitivity in FP8, and a hair more."""
    return math.sqrt(alpha(LOW) * (price + 1e-9) / SEEN.loss_ms)


def test_prefix_by_hand():
    plan = baseline(GAINS, SEEN, "prefix", tau_for(10.0))
    assert plan.quantized == ("a", "b", "c", "d")  # 4 + 1 + 3 + 2 = 10, and e costs 5 more
    assert plan.gain == 3 * 1.0 + 3 * 3.0
    assert plan.loss_mse == pytest.approx(alpha(LOW) * 10)
    assert (plan.strategy, plan.gap, plan.binds) == ("prefix", None, True)
    # It stops at the first op that does not fit, though f (1) would.
    assert baseline(GAINS, SEEN, "prefix", tau_for(11.0)).quantized == ("a", "b", "c", "d")


def test_uniform_lowers_everything_whatever_the_threshold():
    plan = baseline(GAINS, SEEN, "uniform", tau_for(1.0))
    assert plan.quantized == OPS
    assert plan.tau == plan.nrmse
    assert plan.loss_budget == plan.loss_mse
    assert not plan.binds


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("price", [0.5, 3.0, 10.0, 17.0, 24.0])
def test_random_keeps_to_the_budget_and_never_beats_the_program(price, seed):
    tau = tau_for(price)
    plan = baseline(GAINS, SEEN, "random", tau, seed=seed)
    assert plan.loss_mse <= plan.loss_budget == tau**2 * SEEN.loss_ms
    assert plan == baseline(GAINS, SEEN, "random", tau, seed=seed)
    assert plan.gain <= solve(GAINS, SEEN, tau).gain
    wider = baseline(GAINS, SEEN, "random", tau * 1.5, seed=seed)
    assert set(plan.quantized) <= set(wider.quantized)  # one order, cut later


def test_draws_differ():
    plans = {baseline(GAINS, SEEN, "random", tau_for(10.0), seed=seed).quantized for seed in range(10)}
    assert len(plans) > 5


def test_a_curve_passes_through_its_plans():
    program = make_program(GAINS, Costs(SEEN))
    for strategy, seed in (("prefix", 0), ("random", 3)):
        curve = baseline_curve(program, "loss", strategy, seed)
        assert curve.ops == tuple(range(9))
        for k, loss_mse in enumerate(curve.loss_mse):
            if k:
                plan = baseline(GAINS, SEEN, strategy, math.sqrt((1 + 1e-12) * loss_mse / 100), seed=seed)
                assert (len(plan.quantized), plan.gain) == (k, curve.gain[k])
                assert plan.loss_mse == pytest.approx(loss_mse)
                assert plan.interval == pytest.approx((curve.low[k], curve.high[k]))


def test_a_wanted_gain_by_hand():
    # Both of a group gain three times what each gains: a, ab, abc, abcd gain 1, 3, 6, 12.
    assert baseline_gaining(GAINS, SEEN, "prefix", 6.0).quantized == ("a", "b", "c")
    assert baseline_gaining(GAINS, SEEN, "prefix", 6.5).quantized == ("a", "b", "c", "d")
    assert baseline_gaining(GAINS, SEEN, "prefix", 0.0).quantized == ()
    plan = baseline_gaining(GAINS, SEEN, "random", 20.0, seed=2)
    assert plan.gain >= 20.0
    assert plan.loss_budget == plan.loss_mse
    with pytest.raises(InputError, match="the prefix baseline never gains 1000; its largest gain is 48"):
        baseline_gaining(GAINS, SEEN, "prefix", 1000.0)


def test_combinations_nobody_measured():
    whole = pair("a", "b", 1.0)
    partly = GroupGains(whole.ops, whole.configurations[:3], whole.gain[:3], whole.stderr[:3])
    gains = Gains("empirical_time", "s", "measured", "bf16", (partly,))
    sensitivity = SEEN.of({"a", "b"})
    with pytest.raises(InputError, match="a combination of ops whose gain was not measured"):
        baseline(gains, sensitivity, "prefix", tau_for(10.0))
    assert baseline_curve(make_program(gains, Costs(sensitivity)), "loss", "prefix", 0).ops == (0, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prefxi", 0.1), "unknown baseline 'prefxi'; did you mean 'prefix'"),
        (("random", 0.0), "tau is 0.0; it must be a number above 0"),
        (("random", None), "give kl"),
    ],
)
def test_mistakes(arguments, message):
    with pytest.raises(InputError, match=message):
        baseline(GAINS, SEEN, *arguments)


def test_nothing_to_lower():
    only = Gains("memory", "byte", "exact", "bf16", (GroupGains(("a",), (("bf16",),), (0.0,), (0.0,)),))
    with pytest.raises(InputError, match="no op can leave bf16"):
        baseline(only, SEEN, "prefix", 0.1)
