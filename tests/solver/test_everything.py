"""All ops in the lower format: priced as the plan that lowers all of them."""

import numpy as np
import pytest

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline
from inc_mp_plugin.solver.everything import price_everything

LOW = "fp8_e4m3"
OPS = ("a", "b", "c")
SAMPLES = 16


def sensitivity(**changes):
    rows = np.random.default_rng(0).uniform(1.0, 2.0, (SAMPLES, 3))
    return Sensitivity(OPS, np.full(SAMPLES, 10.0), rows, 0.5 * rows, **changes)


def gains():
    groups = tuple(GroupGains((op,), (("bf16",), (LOW,)), (0.0, 1.0), (0.0, 0.0)) for op in OPS)
    return Gains("memory", "byte", "exact", "bf16", groups)


@pytest.mark.parametrize("confidence", [None, 0.8])
def test_it_costs_what_the_plan_of_all_ops_costs(confidence):
    costs = Costs(sensitivity())
    priced = price_everything(costs, OPS, LOW, "bf16", confidence=confidence)
    plan = baseline(gains(), costs, "uniform", 1.0)
    rows = costs.sensitivity.input + costs.sensitivity.weight
    by_hand = np.sqrt(alpha(LOW) * rows.sum(axis=1).mean() / 100)
    assert (priced.format, priced.ops, priced.kl) == (LOW, OPS, None)
    assert priced.nrmse == pytest.approx(plan.nrmse) == pytest.approx(by_hand)
    ends = tuple(np.sqrt(np.array(plan.interval) / 100))
    if confidence is None:
        assert priced.nrmse_interval == pytest.approx(ends)
    else:
        assert ends[0] < priced.nrmse_interval.low < priced.nrmse < priced.nrmse_interval.high < ends[1]
    assert priced.upper is (confidence is not None)


def test_kl_is_counted_per_token():
    costs = Costs(sensitivity(yardstick="kl", tokens=np.full(SAMPLES, 20.0)))
    priced = price_everything(costs, OPS, LOW, "bf16")
    rows = costs.sensitivity.input + costs.sensitivity.weight
    assert priced.kl == pytest.approx(alpha(LOW) * rows.sum(axis=1).mean() / 20)
    assert priced.kl_interval.low < priced.kl < priced.kl_interval.high
    assert priced.nrmse is None


def test_ops_that_must_stay_are_left_out():
    costs = Costs(sensitivity())
    fewer = price_everything(costs, ("a", "c"), LOW, "bf16")
    rows = (costs.sensitivity.input + costs.sensitivity.weight)[:, [0, 2]]
    assert fewer.nrmse == pytest.approx(np.sqrt(alpha(LOW) * rows.sum(axis=1).mean() / 100))
