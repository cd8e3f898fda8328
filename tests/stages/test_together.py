"""Many plans measured together: as one by one, as through INC, and after an interrupt, bit for bit."""

import logging

import helpers
import pytest
import torch
from test_loss_meter import made

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.runtime.progress import LOGGER
from inc_mp_plugin.stages import comparison

WORDS = ("Plans", "fewer")


def plans_of(meter):
    """Random plans, one op alone, and all ops."""
    return [*random_plans(meter._ops, 4, 1), ("lm_head",), ("model.layers.1.mlp.up_proj",), tuple(meter._ops)]


def values(meter, plans):
    """Losses and what is known of the divergence of every plan, and of the base model."""
    divergences = [meter.divergence(plan) for plan in plans]
    return [
        meter.losses(()).tolist(),
        *([meter.losses(plan).tolist() for plan in plans]),
        *([d and [d.kl.tolist(), d.nll.tolist(), d.flips.tolist(), d.p99] for d in divergences]),
    ]


@pytest.fixture(scope="module")
def model():
    return helpers.language_model("llama", num_hidden_layers=3)


@pytest.fixture(scope="module")
def expected(model, tmp_path_factory):
    """Measured through INC, one after the other."""
    meter = made(model, tmp_path_factory.mktemp("inc"))
    return values(meter, plans_of(meter))


def test_together_alone_and_through_inc(model, expected, tmp_path, monkeypatch):
    meter, alone = (made(model, tmp_path / name, through="hooks") for name in ("together", "alone"))
    plans = plans_of(meter)
    meter.measure(plans, *WORDS)
    assert sorted(path.name for path in (tmp_path / "together").iterdir()) == ["measured_losses_hooks.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(meter, "_comparison", None)  # nothing more runs
        assert values(meter, plans) == expected
    assert values(alone, plans) == expected


def test_an_interrupt_loses_one_batch(model, expected, tmp_path, monkeypatch, caplog):
    before, plans = helpers.state(model), plans_of(made(model, tmp_path))
    ran, real = [], comparison.divergence_rows

    def counted(*arguments):
        ran.append(arguments)
        if len(ran) == stop_at:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(comparison, "divergence_rows", counted)
    stop_at = len(plans) + 3  # in the second batch
    with pytest.raises(KeyboardInterrupt):
        made(model, tmp_path, through="hooks").measure(plans, *WORDS)
    helpers.assert_same_state(before, helpers.state(model))
    meter = made(model, tmp_path, through="hooks")
    ran.clear()
    caplog.set_level(logging.INFO, LOGGER.name)
    meter.measure(plans, *WORDS)
    assert len(ran) == len(plans)  # those of the second batch
    assert "Plans, 7 plans: " in caplog.text
    assert values(meter, plans) == expected
    assert not list(tmp_path.glob("*.partial.npz"))


def test_few_at_once(model, expected, tmp_path, monkeypatch):
    """Memory for two plans: the same, in several sweeps."""
    meter = made(model, tmp_path, through="hooks")
    monkeypatch.setattr(comparison.Comparison, "at_once", lambda *_: 2)
    plans = plans_of(meter)
    meter.measure(plans, *WORDS)
    assert values(meter, plans) == expected


def test_without_a_chain(tmp_path):
    images = [torch.randn(3, 3, 8, 8), torch.randn(2, 3, 8, 8)]
    model = helpers.ResidualCNN().eval()
    meters = [
        made(model, tmp_path / through, images, images, helpers.squared_loss, through=through)
        for through in ("inc", "hooks")
    ]
    plans = random_plans(meters[0]._ops, 3, 0)
    for meter in meters:
        meter.measure(plans, *WORDS)
        assert meter.together == (meter.through == "hooks")
    through_inc, together = ([meter.losses(plan).tolist() for plan in plans] for meter in meters)
    assert together == [pytest.approx(losses, rel=1e-6) for losses in through_inc]
    alone = made(model, tmp_path / "alone", images, images, helpers.squared_loss, through="hooks")
    assert values(alone, plans) == values(meters[1], plans)


def test_auto_has_the_plan_judged_through_inc(model, expected, tmp_path):
    before = helpers.state(model)
    meter = made(model, tmp_path, through="auto")
    plans = plans_of(meter)
    meter.measure(plans, *WORDS)
    assert (meter.through, meter.judge.through) == ("hooks", "inc")
    assert meter.judge is meter.judge
    assert meter.judge.losses(plans[0]).tolist() == expected[1]
    assert values(meter, plans) == expected
    assert {path.name for path in tmp_path.glob("*.npz")} == {
        "measured_losses.npz",
        "measured_losses_hooks.npz",
    }
    helpers.assert_same_state(before, helpers.state(model))
    for through in ("inc", "hooks"):
        own = made(model, tmp_path, through=through)
        assert own.judge is own
    in_bf16 = made(model, tmp_path, through="auto", formats=("bf16",))
    assert in_bf16.through == "inc"  # it computes in BF16, too, which hooks do not
    assert in_bf16.judge is in_bf16


def test_a_loss_that_is_not_finite(tmp_path):
    model = helpers.language_model("llama", num_hidden_layers=3)
    meter = made(model, tmp_path, through="hooks")
    assert meter.together  # and takes the scales
    with torch.no_grad():
        model.lm_head.weight[:, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="a loss is NaN or infinite with"):
        meter.measure([("lm_head",)], *WORDS)
