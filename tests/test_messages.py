"""What is said in a terminal: true at the time, and readable."""

import math
from dataclasses import replace

import pytest
from report.report_case import gains, plan, sensitivity

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.report.text import plan_table, summary, threshold
from inc_mp_plugin.runtime.reuse import changes, run_stage


@pytest.mark.parametrize(
    ("before", "now", "said"),
    [
        ({"serving": {"a": 1, "b": 2}}, {"serving": {"a": 1, "b": 3}}, "serving.b was 2, is 3"),
        (
            {"a": {"b": {"c": 1}}},
            {"a": {"b": {"c": 2, "d": 3}}},
            "a.b.c was 1, is 2; a.b.d was not given, is 3",
        ),
        ({"targets": ["x", "y"]}, {"targets": []}, "targets was [x, y], is []"),
        ({"tau": 0.1}, {"tau": None}, "tau was 0.1, is not given"),
        ({"config": {}}, {"config": None}, "config was {}, is not given"),
        ({"files": {"a": "0" * 64}}, {"files": {"a": "1" * 64}}, "files.a has changed"),
        ({"serving": {"a": 1}}, {"serving": {"a": 1}}, ""),
    ],
)
def test_changes_are_readable(before, now, said):
    assert changes(before, now) == said


def test_no_change_within_a_section_goes_unsaid():
    """None is not the same as not there: a value of a model's configuration may be None."""
    assert changes({"config": {"a": None}}, {"config": {}})


def test_nothing_is_said_to_be_made_that_then_fails(tmp_path, caplog):
    caplog.set_level("INFO", "inc_mp_plugin")
    path = tmp_path / "x.json"

    def fail():
        message = "no"
        raise ValueError(message)

    run_stage(path, "x", {"samples": 64}, decode=dict, make=lambda: (1, {}))
    with pytest.raises(ValueError, match="no"):
        run_stage(path, "x", {"samples": 32}, decode=dict, make=fail)
    assert caplog.messages == ["making x.json again: samples was 64, is 32"]


@pytest.mark.parametrize("binds", [True, False])
def test_a_plan_for_a_gain_has_no_tau_that_could_bind(binds):
    wanted = plan(tau=0.08, nrmse=0.08, loss_budget=plan().loss_mse, binds=binds)
    assert threshold(wanted) == "not held to a threshold"
    lines = plan_table(wanted, gains(), Costs(sensitivity())).summary
    assert len(lines) == 3
    assert not any("tau 0" in line or "bind" in line for line in lines)
    assert threshold(plan()) == "tau 0.1"


def test_shares_of_ops_and_cache_add_up_to_the_plan():
    """The cache that `up` of layer 0 reads takes half of its loss; by hand, of a budget of 10 / 768."""
    seen = sensitivity()
    second = {"input": seen.input * [0.5, 0.0, 0.0, 0.0]}
    losses = Costs(replace(seen, second=second), cached=frozenset({seen.ops[0]}))
    table = plan_table(plan(), gains(), losses)
    shares = [cell.loss_percent for cell in table.cells]
    assert shares == [pytest.approx(share) for share in (5.0, 20.0, 0.0, 40.0)]
    assert "The KV cache in FP8 takes 5.0 % of the allowance; the rest is the ops'." in table.summary
    assert math.fsum(shares) + 5.0 == pytest.approx(100 * plan().loss_mse / plan().loss_budget)


def test_a_mixture_of_experts_says_that_its_kl_is_a_lower_bound():
    """Only where anything is lowered: what is in the base format sends no token elsewhere."""
    names = ("model.layers.0.mlp.experts.0.up_proj", "lm_head")
    formats = dict(zip(names, ("fp8_e4m3", "bf16"), strict=True))
    mixture = plan(formats=formats, predicted_kl=0.001, constraint="kl", kl=0.002)
    said = " ".join(summary(mixture))
    assert (
        "Predicted KL divergence: 0.001 nats per token (kl 0.002 and tau 0.1; ip_mse: proved optimal" in said
    )
    assert "A lower bound: tokens that change their experts are not in it" in said
    for other in (plan(predicted_kl=0.001), replace(mixture, formats=dict.fromkeys(names, "bf16"))):
        assert "lower bound" not in " ".join(summary(other))
