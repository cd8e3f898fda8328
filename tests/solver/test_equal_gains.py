"""Of the plans that gain the most, the one that costs least."""

import itertools
import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.gains import Gains, GroupGains
from inc_mp_plugin.sensitivities import Sensitivity
from inc_mp_plugin.solver.planner import solve

OPS = tuple(f"layer{i}" for i in range(7))


@settings(max_examples=200, deadline=None)
@given(
    gains=st.lists(st.sampled_from([1.0, 2.0, 3.1]), min_size=7, max_size=7),
    costs=st.lists(st.floats(0.1, 10.0), min_size=7, max_size=7),
    tau=st.floats(0.01, 1.0),
)
def test_least_loss_among_the_largest_gains(gains, costs, tau):
    groups = (
        GroupGains((op,), (("bf16",), ("fp8_e4m3",)), (0.0, c), (0.0, 0.0))
        for op, c in zip(OPS, gains, strict=True)
    )
    seen = Sensitivity(OPS, np.ones(1), np.zeros((1, 7)), np.array([costs]))
    loss = seen.loss_mse("fp8_e4m3")
    plan = solve(Gains("memory", "byte", "exact", "bf16", tuple(groups)), seen, tau)
    worth = dict(zip(OPS, gains, strict=True))
    subsets = [s for k in range(8) for s in itertools.combinations(OPS, k)]
    fits = [s for s in subsets if math.fsum(loss[op] for op in s) <= tau**2]
    best = max(math.fsum(worth[op] for op in s) for s in fits)
    cheapest = min(math.fsum(loss[op] for op in s) for s in fits if math.fsum(worth[op] for op in s) == best)
    assert plan.gain == best
    assert plan.loss_mse == cheapest
