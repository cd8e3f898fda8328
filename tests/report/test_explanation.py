"""Explanations of ops, by hand: sensitivities of 1, 2, 9 and 4 of 10 that the threshold allows."""

from dataclasses import replace

from report_case import DOWN, HEAD, LATER, OPS, UP, gains, graph, losses, plan

from inc_mp_plugin.core.demands import NO_DEMANDS
from inc_mp_plugin.core.plan import TieCost
from inc_mp_plugin.report.explained import Explained
from inc_mp_plugin.report.explanation import explain_op, explain_plan
from inc_mp_plugin.report.plan_changes import moved_ops
from inc_mp_plugin.report.staying import staying
from inc_mp_plugin.solver.margins import margins
from inc_mp_plugin.solver.program import make_program


def case(**changes):
    whole = plan(loss_mse=7 / 768, **changes)
    stays = staying(whole, gains(), losses(), graph(), runnable=OPS, kept={})
    of = margins(whole, make_program(gains(), losses()))
    return Explained(whole, gains(), losses(), graph(), NO_DEMANDS, stays, of)


def test_an_op_that_stays():
    """6 MB for 3, 3 MB for 4: of the 3 that are left, 9 would gain 3 MB, so 1 % is worth 33 kB."""
    lines = explain_op(case(), LATER, None)
    assert lines[0] == (
        f"{LATER} (linear) stays in bf16: it would take 90.0 % of the allowance for 25.0 % of the largest "
        "gain."
    )
    assert lines[1] == "Price: 0.0117 of loss MSE, 90.00 % of the allowance (tau 0.1)."
    assert lines[2] == "Gain: 3 MB, 25.00 % of the largest, for 90.00 % of the allowance."
    assert lines[3] == "The exact frontier lowers it from tau 0.144338 (100.0 % of the largest gain) on."
    assert lines[4].startswith("1 % of the allowance is worth 33.3 kB at this plan (its dual price).")
    assert len(lines) == 5


def test_a_lowered_op_says_what_it_is_beside_and_what_another_plan_would_gain():
    other = plan(formats={**plan().formats, HEAD: "bf16", LATER: "fp8_e4m3"}, gain=9e6)
    lines = explain_op(case(), HEAD, other)
    assert lines[0] == f"{HEAD} (linear) is lowered to fp8_e4m3: it gains 2.25 times what its price is worth."
    assert lines[4] == (
        "With it in bf16 all the same, the best plan would gain 75.00 % instead of 75.00 % of the largest; "
        "1 other ops would move."
    )
    tied = case(ties=(TieCost((UP, DOWN), "one kernel", 2e6),))
    lines = explain_op(tied, UP, None)
    assert f"Tied to {DOWN} (one kernel), at a cost of 2 MB." in lines
    assert f"Its gain is that of a group: {UP}, {DOWN}." in lines
    assert lines[2].endswith("with the ops that are tied to it.")


def test_the_nearest_ops_of_both_directions():
    text, lowered, staying_ops = explain_plan(case())
    assert "1 is the edge" in text
    assert [row[0] for row in lowered.rows] == [HEAD, DOWN, UP]
    assert [row[3] for row in lowered.rows] == ["2.25", "6", "6"]
    assert [row[:4] for row in staying_ops.rows] == [(LATER, "90.00", "25.00", "1")]


def test_a_plan_of_another_strategy_says_that_it_weighs_nothing():
    lines = explain_op(case(strategy="prefix"), HEAD, None)
    assert "The plan is of strategy prefix, which weighs no gain against a price" in lines[-1]


def test_two_thresholds_are_said():
    lines = explain_op(case(kl=0.5, predicted_kl=0.25), LATER, None)
    assert "Two thresholds hold (kl 0.5 and tau 0.1): numbers are of tau alone" in lines[-1]
    assert lines[-1].endswith("The plan is at kl 0.25 and tau 0.08.")


def test_a_plan_for_a_gain_names_corners_by_their_gain():
    given = case(tau=0.08, nrmse=0.08, loss_budget=7 / 768)
    lines = explain_op(given, LATER, replace(given.plan, nrmse=0.12))
    assert "The exact frontier lowers it from gain_fraction 1 on." in lines


def test_ops_that_moved_are_shown_with_their_prices_in_both():
    first, second = case(), case(formats={**plan().formats, HEAD: "bf16", LATER: "fp8_e4m3"})
    entered, left, prices = moved_ops(first, second, ("a", "b"))
    assert entered.caption == "Lowered in b alone (1); a gain per price of 1 is the edge:"
    assert entered.rows == ((LATER, "0.0117", "0.0117", "1", "1"),)
    assert left.rows == ((HEAD, "0.00521", "0.00521", "2.25", "2.25"),)
    assert prices == "All prices are the same."


def test_another_base_format_alone_moves_no_op():
    formats = {op: name.replace("bf16", "fp32") for op, name in plan().formats.items()}
    other = replace(case(), plan=replace(case().plan, base="fp32", formats=formats))
    assert moved_ops(case(), other, ("a", "b"))[0] == "No op moved."
