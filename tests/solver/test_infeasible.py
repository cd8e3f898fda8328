"""Thresholds that what the consumers fix exceeds: what is named, shares of the budget, what helps."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from inc_mp_plugin.core.costs import costs_of
from inc_mp_plugin.core.demands import Demands, Serving, Tie
from inc_mp_plugin.core.errors import InfeasibleError
from inc_mp_plugin.core.formats import alpha
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.ties import tie_costs
from inc_mp_plugin.solver.uncertainty import stability

BASE, LOW = "bf16", "fp8_e4m3"
OPS = ("k", "qk", "o")
NOISE = alpha(LOW)
FP8 = Serving(kv_cache="fp8")
WHY = "optimum-habana: without --reuse_cache an FP8 cache takes FP8 keys only"


def gains():
    groups = tuple(GroupGains((op,), ((BASE,), (LOW,)), (0.0, 1.0), (0.0, 0.0)) for op in OPS)
    return Gains("memory", "byte", "exact", BASE, groups)


def seen(samples=1, spread=0.0):
    """Losses of 1; in units of alpha, lowering k costs 3, qk 2 and o 4, and the cache that qk reads 6."""
    scale = np.exp(spread * np.random.default_rng(0).standard_normal((samples, 1)))
    rows, second = scale * [3.0, 8.0, 4.0], scale * [0.0, 6.0, 0.0]
    return LossModel(Sensitivity(OPS, np.ones(samples), rows, 0.0 * rows, second={"input": second}))


CASES = {
    "cache": (
        Demands(("t",), FP8, cached=frozenset({"qk"})),
        6.0,
        "the KV cache in FP8 takes 150 %; give a larger tau, or kv_cache=bf16",
    ),
    "cache and keys": (
        Demands(("t",), FP8, lowered={"k": WHY}, cached=frozenset({"qk"})),
        9.0,
        f"the KV cache in FP8 takes 150 % and 1 ops take 75 % ({WHY}); give a larger tau, or kv_cache=bf16",
    ),
    "an op": (
        Demands(("t",), lowered={"o": "it must"}),
        4.0,
        "1 ops take 100 % (it must); give a larger tau:",
    ),
}


@pytest.mark.parametrize("strategy", ["ip_mse", "prefix"])
@pytest.mark.parametrize(("demands", "least", "said"), CASES.values(), ids=CASES.keys())
def test_what_exceeds_the_budget_is_named_and_the_least_tau_works(strategy, demands, least, said):
    """A budget of 4 alpha, or a hair less; the shares are those of `seen`, by hand."""
    tau = math.sqrt(3.999 * NOISE)

    def plan(at):
        if strategy == "ip_mse":
            return solve(gains(), seen(), at, demands=demands)
        return baseline(gains(), seen(), strategy, at, demands=demands)

    with pytest.raises(InfeasibleError) as refused:
        plan(tau)
    text = str(refused.value)
    assert said in text
    named = float(re.search(r"the least tau that can be met is (\S+)$", text)[1])
    assert named == pytest.approx(math.sqrt(least * NOISE), rel=1e-5)
    assert plan(named).loss_mse == pytest.approx(least * NOISE)
    with pytest.raises(InfeasibleError):
        plan(named * (1 - 2e-5))


@pytest.mark.parametrize("confidence", [0.5, 0.95])
@pytest.mark.parametrize("tau", [0.001, 0.117], ids=["mean exceeds it", "only the upper end does"])
def test_the_least_tau_at_a_confidence_works(confidence, tau):
    demands, priced = CASES["cache and keys"][0], seen(20, 1.0)
    with pytest.raises(
        InfeasibleError, match="where the interval's upper end counts: of the allowance"
    ) as no:
        solve(gains(), priced, tau, confidence=confidence, demands=demands)
    named = float(str(no.value).rsplit(" ", 1)[1])
    plan = solve(gains(), priced, named * (1 + 1e-6), confidence=confidence, demands=demands)
    assert plan.interval.high <= named**2 * (1 + 1e-5) * priced.loss_ms


@pytest.mark.parametrize("fraction", [0.4, 0.9, 1.0])
def test_the_least_tau_for_a_gain_works(fraction):
    with pytest.raises(InfeasibleError, match="the least tau that allows it is") as refused:
        solve(gains(), seen(), 1e-6, gain_fraction=fraction)
    named = float(str(refused.value).rsplit(" ", 1)[1])
    assert solve(gains(), seen(), named, gain_fraction=fraction).gain >= fraction * 3


def test_draws_that_allow_no_plan_are_left_out():
    """With a cache that takes nearly all of the budget, about half of the redrawn samples exceed it."""
    demands, priced = CASES["cache"][0], seen(30, 1.0)
    cache = replace(priced, cached=demands.cached).cache_row_costs
    tau = math.sqrt(1.01 * float(cache.mean()))
    plan = solve(gains(), priced, tau, demands=demands)
    result = stability(plan, costs_of(priced), lambda other: solve(gains(), other, tau, demands=demands), 40)
    drawn = [np.random.default_rng(seed).integers(0, 30, 30) for seed in range(40)]
    possible = sum(float(cache[rows].mean()) <= tau**2 for rows in drawn)
    assert 0 < result.draws == possible < 40


def test_rounding_errors_are_no_cost_of_a_tie():
    """0.1 + 0.2 is not 0.3: tied or not, all is lowered, and the sums differ in their last digit."""
    each = dict(zip(OPS, (0.1, 0.2, 0.3), strict=True))
    groups = tuple(GroupGains((op,), ((BASE,), (LOW,)), (0.0, gain), (0.0, 0.0)) for op, gain in each.items())
    demands = Demands(("t",), ties=(Tie(OPS, "one kernel"),))
    odd = {1: 1e-14, 3: 0.0}  # a worth whose value depends on how many ops are asked for at once

    def worth(group):
        return max(group.gain) + odd[len(group.ops)]

    whole = Gains("memory", "byte", "exact", BASE, groups)
    assert tie_costs(whole, demands, worth) == [(demands.ties[0], 0.0)]
    odd[1] = 1e-3
    ((_, cost),) = tie_costs(whole, demands, worth)
    assert cost == pytest.approx(3e-3)
