"""The program against exhaustive search, and HiGHS against our own search."""

import itertools
import math
import random

import pytest

from inc_mp_plugin.core.errors import InfeasibleError, SolverError
from inc_mp_plugin.solver import milp
from inc_mp_plugin.solver.milp import Candidate, Status, choose
from inc_mp_plugin.solver.search import GaveUpError


def random_groups(draw, equal_values):
    """A few groups at a random scale of costs and of values; some values negative, or all equal."""
    cost_scale, value_scale = 10 ** draw.uniform(-12, 3), 10 ** draw.uniform(-9, 9)
    steps = [draw.uniform(-0.2, 1.0) * value_scale for _ in range(5)]
    groups = []
    for _ in range(draw.randint(1, 6)):
        others = [
            Candidate(
                steps[i] if equal_values else draw.uniform(-0.2, 1.0) * value_scale,
                draw.random() * cost_scale,
            )
            for i in range(draw.randint(0, 4))
        ]
        groups.append([Candidate(0.0, 0.0), *others])
    return groups, draw.random() * cost_scale * len(groups) / 2


def best_value(groups, capacity):
    """Try every choice."""
    values = [-math.inf]
    for picks in itertools.product(*(range(len(group)) for group in groups)):
        chosen = [group[p] for group, p in zip(groups, picks, strict=True)]
        if math.fsum(c.cost for c in chosen) <= capacity:
            values.append(math.fsum(c.value for c in chosen))
    return max(values)


def check(groups, capacity):
    choice = choose(groups, capacity)
    chosen = [group[p] for group, p in zip(groups, choice.picks, strict=True)]
    assert math.fsum(c.cost for c in chosen) <= capacity
    best = best_value(groups, capacity)
    assert math.fsum(c.value for c in chosen) == pytest.approx(best, rel=1e-9)
    assert choice.status is Status.OPTIMAL
    assert choice.gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("block", range(20))
def test_equals_exhaustive_search_at_any_scale(block):
    """1,000 instances, with losses from 1e-12 to 1e+3."""
    for seed in range(block * 50, (block + 1) * 50):
        check(*random_groups(random.Random(seed), equal_values=seed % 2 == 0))


@pytest.mark.parametrize("block", range(4))
def test_highs_alone_equals_exhaustive_search(block, monkeypatch):
    """The way taken when the search would need too many states."""

    def refuse(*_):
        raise GaveUpError

    monkeypatch.setattr(milp, "search", refuse)
    for seed in range(block * 50, (block + 1) * 50):
        check(*random_groups(random.Random(seed), equal_values=seed % 2 == 0))


@pytest.mark.parametrize("fraction", [0.05, 0.3, 0.6, 0.95])
def test_search_equals_highs_on_many_groups(fraction, monkeypatch):
    draw = random.Random(7)
    groups = [
        [Candidate(0.0, 0.0), *(Candidate(draw.random(), draw.random()) for _ in range(3))] for _ in range(60)
    ]
    capacity = fraction * sum(max(c.cost for c in group) for group in groups)

    def value(choice):
        return math.fsum(group[p].value for group, p in zip(groups, choice.picks, strict=True))

    ours = value(choose(groups, capacity))
    monkeypatch.setattr(milp, "search", lambda *_: (_ for _ in ()).throw(GaveUpError))
    assert ours == pytest.approx(value(choose(groups, capacity)), rel=1e-9)


def test_the_capacity_may_be_met_exactly():
    groups = [[Candidate(0.0, 0.0), Candidate(1.0, 0.1)] for _ in range(3)]
    assert sum(choose(groups, 0.2).picks) == 2
    assert sum(choose(groups, math.nextafter(0.2, 0.0)).picks) == 1
    assert sum(choose(groups, 0.0).picks) == 0


def test_infeasible_names_the_least():
    with pytest.raises(InfeasibleError, match=r"least that can be reached is 0\.7"):
        choose([[Candidate(1.0, 0.3)], [Candidate(1.0, 0.4), Candidate(2.0, 0.5)]], 0.6)


def test_a_time_limit_gives_a_feasible_answer_or_an_error(monkeypatch):
    monkeypatch.setattr(milp, "search", lambda *_: (_ for _ in ()).throw(GaveUpError))
    draw = random.Random(1)
    values = [2.0**i for i in range(4)]
    groups = [[Candidate(0.0, 0.0), *(Candidate(v, draw.random()) for v in values)] for _ in range(400)]
    try:
        choice = choose(groups, 30.0, time_limit_s=0.05)
    except SolverError as error:
        assert "no plan was found" in str(error) or "relaxed" in str(error)
    else:
        assert math.fsum(g[p].cost for g, p in zip(groups, choice.picks, strict=True)) <= 30.0
