"""The last line of `inc-mp tune`: what the lower format costs everywhere, and whether a plan is needed."""

from dataclasses import replace

import pytest
from report_case import OPS, plan

from inc_mp_plugin.core.everything import Everything
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import KLPoint, Point, Validation
from inc_mp_plugin.report.everything import everything_text

KL = Everything("fp8_e4m3", OPS, 0.02, Interval(0.015, 0.03), None, None)
BOTH = replace(KL, nrmse=0.09, nrmse_interval=None)
COST = "fp8_e4m3 everywhere (4 of 4 ops) would cost 0.02 (0.015 to 0.03) nats per token, predicted"


def held_to(kl, tau=None):
    return plan(kl=kl, tau=tau)


def measured(ops, value, flips=0.05):
    kl = KLPoint(0.02, None, value, None, flips=flips, p99=0.1)
    point = Point(ops, None, None, 1.0, None, kl)
    other = replace(point, quantized=OPS[:1])
    return Validation(8, 1.0, None, 0.1, other, (point,), None, None)


@pytest.mark.parametrize(
    ("kl", "upper", "end"),
    [
        (0.01, False, "That is above kl 0.01."),
        (0.025, False, "That is within kl 0.025: no plan is needed."),
        (0.025, True, "That is above kl 0.025."),
        (0.03, True, "That is within kl 0.03: no plan is needed."),
    ],
)
def test_the_threshold_decides_with_confidence_by_the_upper_end(kl, upper, end):
    text = everything_text(replace(KL, upper=upper), held_to(kl), None)
    assert text == f"{COST}. {end}"


@pytest.mark.parametrize(
    ("kl", "tau", "end"),
    [
        (0.03, 0.1, "That is within kl 0.03 and tau 0.1: no plan is needed."),
        (0.03, 0.08, "That is above tau 0.08."),
        (0.01, 0.08, "That is above kl 0.01 and tau 0.08."),
    ],
)
def test_two_thresholds_have_to_hold(kl, tau, end):
    text = everything_text(BOTH, held_to(kl, tau), None)
    cost = "0.02 (0.015 to 0.03) nats per token and an NRMSE of 0.09, predicted"
    assert text == f"fp8_e4m3 everywhere (4 of 4 ops) would cost {cost}. {end}"


def test_a_threshold_without_a_prediction_is_not_said_to_hold():
    assert everything_text(KL, held_to(None, 0.5), None).endswith("That is above tau 0.5.")


def test_without_a_threshold_the_cost_alone_is_said():
    assert everything_text(KL, held_to(None), None) == f"{COST}."


def test_tokens_that_change_are_said_where_these_ops_were_measured():
    text = everything_text(KL, held_to(0.03), measured(OPS, 0.021))
    changes = "measured, 0.021 nats per token: 1 token in 20 changes its most likely word"
    assert text == f"{COST}; {changes}. That is within kl 0.03: no plan is needed."
    above = everything_text(KL, held_to(0.03), measured(OPS, 0.031))
    assert above.endswith("That is above kl 0.03, as measured.")
    assert everything_text(KL, held_to(0.03), measured(OPS[1:], 0.021)).startswith(f"{COST}. ")


def test_of_experts_the_prediction_is_a_lower_bound_until_they_are_measured():
    experts = replace(KL, ops=(*OPS[:3], "m.layers.0.mlp.experts.0.w1"))
    text = everything_text(experts, held_to(0.03), None)
    assert "would cost at least 0.02" in text
    assert "no plan is needed" not in text
    assert text.endswith("measure such a plan (validation).")
    assert "no plan is needed" in everything_text(experts, held_to(0.03), measured(experts.ops, 0.02))
