"""Wanted gains that equal layers meet exactly: against plain sorting, tables and fractions."""

import itertools
import math
import random
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inc_mp_plugin.core.errors import InfeasibleError, SolverError
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import OpValues
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.solver import milp
from inc_mp_plugin.solver.milp import Candidate, Status, choose
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.solver.search import GaveUpError, Knapsack, OutOfTimeError, search

LOW = "fp8_e4m3"
SECOND = 1e-3  # of a measured gain
# Linears of a Llama's layer, hidden size 576, in units of 110,592 weights: q, k, v, o, gate, up, down.
LAYER, UNIT = (3, 1, 1, 3, 8, 8, 8), 110_592


def gains_of(numbers, cost=None, source="exact"):
    groups = tuple(
        GroupGains((f"op{i}",), (("fp32",), (LOW,)), (0.0, float(g)), (0.0, 0.0))
        for i, g in enumerate(numbers)
    )
    unit = {"exact": "byte", "measured": "s"}[source]
    return Gains("memory", unit, source, "fp32", groups, cost)


def sensitivity_of(totals):
    rows = np.array([totals])
    return Sensitivity(tuple(f"op{i}" for i in range(len(totals))), np.ones(1), rows, np.zeros_like(rows))


def values_of(numbers):
    return OpValues("eagl", "bit", {LOW: {f"op{i}": v for i, v in enumerate(numbers)}})


def spent(plan, prices):
    return math.fsum(prices[int(op[2:])] for op in plan.quantized)


def fewest(gain, step):
    """How many equal gains add up to this much."""
    return math.ceil(Fraction(gain) / Fraction(step))


def tabulated(units, prices, most):
    """Least sum of prices of ops whose whole units add up to at least this many: a table over the units."""
    least = [0.0] + [math.inf] * most
    for unit, value in zip(units, prices, strict=True):
        for reached in range(most, 0, -1):
            least[reached] = min(least[reached], least[max(0, reached - unit)] + value)
    return least[most]


hundredths = st.integers(1, 99).map(lambda n: n / 100)
fractions = st.one_of(hundredths, st.integers(10, 990).map(lambda n: n / 1000), st.floats(0.01, 0.99))
layers = st.integers(10, 130)
seeds = st.integers(0, 10_000)
steps = st.one_of(st.sampled_from([3 * 331_776, 1_327_104, 7, 1]), st.integers(1, 10**12))


@settings(max_examples=60, deadline=None)
@given(layers, fractions, seeds, steps, st.sampled_from(["loss", "eagl"]))
def test_a_budget_of_cost_with_layers_of_equal_shape(count, budget, seed, step, priced_by):
    """In FP8 an FP32 weight saves three of four bytes: the cheapest that save enough, by sorting."""
    prices = np.random.default_rng(seed).lognormal(size=count).tolist()
    gains, saved = gains_of([3 * step] * count, 4.0 * step * count), (1 - Fraction(str(budget))) * 4
    values = values_of(prices) if priced_by == "eagl" else None
    if saved > 3:
        with pytest.raises(InfeasibleError, match="least budget that can be met is 0.25"):
            solve(gains, sensitivity_of(prices), budget=budget, values=values)
        return
    plan = solve(gains, sensitivity_of(prices), budget=budget, values=values)
    lowered = fewest(saved * count, 3)
    assert len(plan.quantized) == lowered
    assert spent(plan, prices) == pytest.approx(math.fsum(sorted(prices)[:lowered]))
    assert plan.status == Status.OPTIMAL.value


@settings(max_examples=60, deadline=None)
@given(layers, fractions, seeds, st.sampled_from(["loss", "eagl"]), st.sampled_from(["exact", "measured"]))
def test_a_fraction_of_the_gain_with_layers_of_equal_shape(count, fraction, seed, priced_by, source):
    prices = np.random.default_rng(seed).lognormal(size=count).tolist()
    step = 1_327_104 if source == "exact" else SECOND
    values = values_of(prices) if priced_by == "eagl" else None
    gains = gains_of([step] * count, source=source)
    plan = solve(gains, sensitivity_of(prices), gain_fraction=fraction, values=values)
    less = 0 if source == "exact" else Fraction(1, 10**9)
    lowered = fewest((Fraction(str(fraction)) - less) * count, 1)
    assert len(plan.quantized) == lowered
    assert spent(plan, prices) == pytest.approx(math.fsum(sorted(prices)[:lowered]))


@settings(max_examples=60, deadline=None)
@given(layers, fractions, seeds, st.booleans())
def test_a_threshold_with_layers_of_equal_shape(count, share, seed, equal_losses):
    """The most gain is the most ops: as many of the cheapest as the loss budget holds, exactly."""
    draw = np.random.default_rng(seed)
    totals = [draw.lognormal()] * count if equal_losses else draw.lognormal(size=count).tolist()
    gains, losses = gains_of([1_327_104] * count), sensitivity_of(totals)
    cheapest = sorted(Fraction(loss) for loss in LossModel(losses).costs(LOW).values())
    tau = math.sqrt(share * float(sum(cheapest)))
    plan = solve(gains, losses, tau)
    most = sum(total <= Fraction(plan.loss_budget) for total in itertools.accumulate(cheapest))
    assert len(plan.quantized) == most
    assert sum(Fraction(LossModel(losses).costs(LOW)[op]) for op in plan.quantized) <= Fraction(
        plan.loss_budget
    )
    assert plan.loss_mse <= plan.loss_budget


@pytest.mark.parametrize("budget", [0.7, 0.3, 0.26, 0.5, 0.855, 0.99])
def test_a_budget_of_cost_with_layers_of_a_language_model(budget):
    """30 layers; of 424,673,280 bytes a budget of 0.7 leaves 127,401,984 to save, 384 units, exactly."""
    units = LAYER * 30
    values = np.random.default_rng(3).uniform(2.0, 4.0, len(units)).tolist()
    cost = 4.0 * UNIT * sum(units)
    gains = gains_of([3 * UNIT * unit for unit in units], cost)
    plan = solve(gains, sensitivity_of(values), budget=budget, values=values_of(values))
    needed = fewest((1 - Fraction(str(budget))) * Fraction(cost), 3 * UNIT)
    assert spent(plan, values) == pytest.approx(tabulated(units, values, needed))
    assert plan.gain >= (1 - Fraction(str(budget))) * Fraction(cost)
    if budget == 0.7:
        assert (cost, plan.gain) == (424_673_280.0, 127_401_984.0)


def best_within(groups, capacity):
    """Largest value of all choices within a capacity, in fractions."""
    best = None
    for chosen in itertools.product(*groups):
        if sum(Fraction(c.cost) for c in chosen) <= capacity:
            value = sum(Fraction(c.value) for c in chosen)
            best = value if best is None else max(best, value)
    return best


whole = st.builds(Candidate, st.integers(-5, 60).map(float), st.integers(0, 40).map(float))
rational = st.builds(Candidate, st.floats(-1.0, 9.0), st.sampled_from([0.1, 0.2, 0.3, 0.7, 1e-9, 1 / 3]))


def groups_of(candidates):
    return st.lists(st.lists(candidates, min_size=1, max_size=4), min_size=1, max_size=6)


@settings(max_examples=100, deadline=None)
@given(groups_of(whole), st.fractions(0, 150, max_denominator=10))
def test_whole_costs_against_all_choices(groups, capacity):
    best = best_within(groups, capacity)
    if best is None:
        with pytest.raises(InfeasibleError, match="the least that can be reached"):
            choose(groups, capacity)
        return
    choice = choose(groups, capacity)
    chosen = [group[p] for group, p in zip(groups, choice.picks, strict=True)]
    assert sum(Fraction(c.cost) for c in chosen) <= capacity
    assert sum(Fraction(c.value) for c in chosen) == best


@settings(max_examples=100, deadline=None)
@given(groups_of(rational), st.integers(0, 60).map(lambda n: n / 10))
def test_costs_that_floats_round_against_all_choices(groups, capacity):
    """Never above the capacity, and nothing better below it, but for what rounding errors hide."""
    if best_within(groups, Fraction(capacity)) is None:
        with pytest.raises(InfeasibleError, match="the least that can be reached"):
            choose(groups, capacity)
        return
    choice = choose(groups, capacity)
    chosen = [group[p] for group, p in zip(groups, choice.picks, strict=True)]
    assert sum(Fraction(c.cost) for c in chosen) <= Fraction(capacity)
    below = best_within(groups, Fraction(capacity) * (1 - Fraction(1, 10**12)))
    if below is not None:
        assert sum(Fraction(c.value) for c in chosen) >= below - Fraction(1, 10**9)


def test_more_than_floats_count_exactly():
    """Bit operations above 2^53: one of 2 (2^53 + 1) is missing where both ops are needed."""
    big = float(2**53)
    groups = [[Candidate(0.0, 0.0), Candidate(-1.0, -big)], [Candidate(0.0, 0.0), Candidate(-1.0, -big)]]
    assert choose(groups, Fraction(-(2**53))).picks.count(1) == 1
    assert choose(groups, Fraction(-(2**53) - 1)).picks == (1, 1)
    with pytest.raises(InfeasibleError):
        choose(groups, Fraction(-(2**54) - 1))


@pytest.mark.parametrize("seed", range(20))
def test_a_drift_and_a_cache_leave_no_plan_above_its_loss_budget(seed):
    draw = np.random.default_rng(seed)
    rows = draw.lognormal(size=(4, 12))
    arrays = Sensitivity(
        tuple(f"op{i}" for i in range(12)),
        np.full(4, 2.0),
        rows,
        0 * rows,
        {LOW: rows},
        Drift(float(draw.uniform(0, 3)), 0.0),
    )
    losses = LossModel(arrays, "measured")
    for tau in draw.uniform(0.1, 8.0, 20).tolist():
        plan = solve(gains_of(draw.integers(1, 50, 12)), losses, tau)
        assert plan.loss_mse <= plan.loss_budget == tau**2 * losses.loss_ms


def nearly_too_much():
    """Ten of twenty equal candidates exceed the capacity by 1e-11 of it: any ten."""
    groups = [[Candidate(0.0, 0.0), Candidate(1.0, 1.0)] for _ in range(20)]
    return groups, Fraction(10) - Fraction(1, 10**10)


def test_what_is_a_hair_too_much_is_not_solved_for_again_without_end(monkeypatch):
    groups, capacity = nearly_too_much()
    assert sum(choose(groups, capacity).picks) == 9

    def refuse(*_):
        raise GaveUpError

    monkeypatch.setattr(milp, "search", refuse)
    with pytest.raises(SolverError, match="30 answers of HiGHS in a row miss the constraint .* smaller gain"):
        choose(groups, capacity)


def test_the_search_gives_up_and_ends_in_time():
    groups, _ = nearly_too_much()
    program = Knapsack(tuple(np.array([0.0, 1.0]) for _ in groups), (np.array([0.0, 0.1]),) * 20, 1.0)
    with pytest.raises(GaveUpError):
        search(program, 10.0, lambda picks: False, math.inf)
    with pytest.raises(OutOfTimeError):
        search(program, 10.0, lambda picks: True, 0.0)


@pytest.mark.parametrize("error", [OutOfTimeError, GaveUpError])
@pytest.mark.parametrize("seed", range(5))
def test_when_the_time_is_over_there_is_a_plan_and_how_far_it_may_be_off(seed, error, monkeypatch):
    draw = random.Random(seed)
    groups = [
        [Candidate(0.0, 0.0), *(Candidate(draw.random(), draw.random()) for _ in range(2))] for _ in range(6)
    ]

    def stop(*_):
        raise error

    monkeypatch.setattr(milp, "search", stop)
    if error is GaveUpError:  # then HiGHS has no time left, either
        monkeypatch.setattr(milp.highs, "solve_integer", lambda *_: None)
    choice = choose(groups, 1.0)
    chosen = [group[p] for group, p in zip(groups, choice.picks, strict=True)]
    value, best = math.fsum(c.value for c in chosen), float(best_within(groups, Fraction(1)))
    assert math.fsum(c.cost for c in chosen) <= 1.0
    assert choice.status is Status.TIME_LIMIT
    assert value <= best <= value / (1 - choice.gap) + 1e-9
    assert 0 <= choice.gap < 1


_BOTH_WAYS = """
from inc_mp_plugin.solver import milp
from inc_mp_plugin.solver.search import GaveUpError
from inc_mp_plugin.solver.milp import Candidate, choose

groups = [[Candidate(0.0, 0.0), Candidate(2.0 + i**1.5, 0.3 + i / 7)] for i in range(9)]
picks, _ = choose(groups, 4.0).picks, milp.price(groups, 4.0)

def refuse(*_):
    raise GaveUpError

milp.search = refuse
assert choose(groups, 4.0).picks == picks
"""


def test_highs_prints_nothing():
    """Not even its banner; in a process of its own, because HiGHS prints that once."""
    done = subprocess.run([sys.executable, "-c", _BOTH_WAYS], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
