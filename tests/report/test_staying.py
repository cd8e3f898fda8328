"""Why ops stay in the base format, by hand."""

from dataclasses import replace

import numpy as np
import pytest
from report_case import DOWN, HEAD, LATER, OPS, UP, gains, graph, losses, plan

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.core.plan import TieCost
from inc_mp_plugin.core.sensitivity import Drift, Sensitivity
from inc_mp_plugin.report.staying import COPIED, COST, NO_GAIN, TIED, UNKNOWN, Stay, staying, staying_table
from inc_mp_plugin.solver.planner import solve

LOW = "fp8_e4m3"


def stays(plan_of=None, **changes):
    known = {"gains": gains(), "costs": losses(), "graph": graph(), "runnable": OPS, "kept": {}, **changes}
    positional = [known.pop(name) for name in ("gains", "costs", "graph")]
    return staying(plan_of or plan(), *positional, **known)


def everything_stays(**changes):
    return plan(formats=dict.fromkeys(OPS, "bf16"), gain=0.0, **changes)


def test_an_op_that_costs_too_much_is_said_with_its_numbers():
    """The sensitivities are 1, 2, 9 and 4, and the threshold allows 10; the op gains 3 of 12."""
    assert stays() == {
        LATER: Stay(
            COST,
            "it would take 90.0 % of the allowance for 25.0 % of the largest gain",
            pytest.approx(90.0),
        )
    }


def test_alone_in_a_group_that_gains_together_the_gain_was_not_measured():
    found = stays(everything_stays())
    assert (found[UP].text, found[DOWN].reason, found[HEAD].reason) == (UNKNOWN, UNKNOWN, COST)


def test_tied_ops_are_judged_together():
    tie = TieCost((UP, DOWN), "one kernel", 0.0)
    found = stays(everything_stays(ties=(tie,)))
    text = "it and 1 tied ops would take 30.0 % of the allowance for 50.0 % of the largest gain"
    assert (found[UP].reason, found[UP].text) == (found[DOWN].reason, found[DOWN].text) == (TIED, text)
    assert (found[UP].percent, found[DOWN].percent) == (pytest.approx(10.0), pytest.approx(20.0))


@pytest.mark.parametrize("offered", [True, False])
def test_an_op_without_a_gain(offered):
    none = GroupGains((LATER,), (("bf16",), (LOW,)), (0.0, -1.0), (0.0, 0.0))
    if not offered:  # as products of activations, for memory
        none = GroupGains((LATER,), (("bf16",),), (0.0,), (0.0,))
    pair, _, head = gains().groups
    of = Gains("memory", "byte", "exact", "bf16", (pair, none, head))
    assert stays(gains=of)[LATER].text == NO_GAIN
    whole = graph()
    shared = tuple(replace(op, tied=op.name == LATER) for op in whole.ops)
    assert stays(gains=of, graph=Graph(shared, whole.groups, (), {}))[LATER].text == COPIED


def test_ops_without_a_choice():
    assert stays(kept={LATER: "INC has no scale for it"})[LATER].reason == "INC has no scale for it"
    assert stays(runnable=(UP, DOWN, HEAD))[LATER].reason == "no target runs it in a lower format"
    reached = losses().of({UP, DOWN, HEAD})
    assert stays(costs=reached)[LATER] == Stay(*["no sample reached it"] * 2, 0.0)


def test_the_shift_of_the_mean_loss_counts():
    """Variances 1 and 2, shifts 0.5 and 1: the second op adds 2 to the variance, and 1.5^2 - 0.5^2."""
    rows = np.array([[1.0, 2.0]]).repeat(4, axis=0)
    drift = Drift(0.5, 0.0)
    seen = Sensitivity((UP, DOWN), np.ones(4), rows, 0 * rows, rounding={LOW: rows}, measured_drift=drift)
    single = tuple(GroupGains((op,), (("bf16",), (LOW,)), (0.0, 1.0), (0.0, 0.0)) for op in (UP, DOWN))
    lowers_first = plan(formats={UP: LOW, DOWN: "bf16"}, loss_budget=8.0, largest_gain=2.0)
    found = stays(
        lowers_first,
        gains=Gains("memory", "byte", "exact", "bf16", single),
        costs=Costs(seen, "measured"),
        runnable=(UP, DOWN),
    )
    assert found[DOWN].percent == pytest.approx(100 * 4.0 / 8.0)


@pytest.mark.parametrize("seed", range(8))
def test_what_an_optimal_plan_leaves_for_its_cost_does_not_fit_beside_it(seed):
    draw = np.random.default_rng(seed)
    ops = tuple(f"m.layers.{i}.up" for i in range(12))
    rows = draw.uniform(0.1, 3.0, 12)[None].repeat(2, axis=0)
    values = dict(zip(ops, draw.uniform(-1.0, 5.0, 12).round(3).tolist(), strict=True))
    pair = (("bf16",), (LOW,))
    groups = [GroupGains((op,), pair, (0.0, value), (0.0, 0.0)) for op, value in values.items()]
    of = Gains("memory", "byte", "exact", "bf16", tuple(groups))
    costs = Costs(Sensitivity(ops, np.ones(2), rows, 0 * rows))
    best = solve(of, costs, 0.1)
    whole = Graph(tuple(Op(op, "linear", 1, 1, 1) for op in ops), (), (), {})
    found = staying(best, of, costs, whole, runnable=ops, kept={})
    assert set(found) == set(ops) - set(best.quantized)
    left = 100 * (1 - best.loss_mse / best.loss_budget)
    for op, stay in found.items():
        assert stay.reason == (COST if values[op] > 0 else NO_GAIN)
        assert stay.reason == NO_GAIN or stay.percent > left
    assert COST in {stay.reason for stay in found.values()}


def test_nothing_to_lower_has_no_reasons():
    only = GroupGains(OPS, (("bf16",) * 4,), (0.0,), (0.0,))
    assert stays(everything_stays(), gains=Gains("memory", "byte", "exact", "bf16", (only,))) == {}


def test_the_table_counts_reasons_and_kinds():
    found = {
        "m.layers.0.q": Stay(COST, "", 1.0),
        "m.layers.1.q": Stay(COST, "", 2.0),
        "m.layers.1.up": Stay(COST, "", 4.0),
        "head": Stay(NO_GAIN, "", 270.04),
    }
    assert staying_table(found, "fp32").rows == (
        (COST, "q (2), up", "3", "7.0"),
        (NO_GAIN, "head", "1", "270.0"),
    )
