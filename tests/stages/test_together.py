"""Many plans measured together: as one by one, as through INC, and after an interrupt, bit for bit."""

import logging

import helpers
import pytest
import torch
import transformers
from test_loss_meter import made

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.runtime.progress import LOGGER
from inc_mp_plugin.stages import comparison

WORDS = ("Plans", "fewer")


def plans_of(meter):
    """Random plans, one op alone, and all ops."""
    ops = meter._ops
    return [*random_plans(ops, 4, 1), (ops[-1],), (ops[len(ops) // 2],), tuple(ops)]


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


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, 8, 8, generator=generator) for count in (3, 2)]


def texts_and_answers():
    return [{"input_ids": helpers.tokens(n, 12, n), "labels": helpers.tokens(n, 9, 10 + n)} for n in (3, 2)]


def t5():
    config = transformers.T5Config(
        vocab_size=helpers.VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def bart():
    sizes = {"layers": 2, "attention_heads": 4, "ffn_dim": 48}
    sides = {f"{side}_{key}": size for side in ("encoder", "decoder") for key, size in sizes.items()}
    config = transformers.BartConfig(
        vocab_size=helpers.VOCABULARY, d_model=32, max_position_embeddings=64, **sides
    )
    return transformers.BartForConditionalGeneration(config)


NO_CHAIN = {
    "a CNN": (helpers.ResidualCNN, images, helpers.squared_loss, "the model has no repeated blocks"),
    "T5": (t5, texts_and_answers, None, "encoder.block.0 returns 2 tensors, and not one"),
    "BART": (bart, texts_and_answers, None, "the blocks are called in different ways"),
}


@pytest.mark.parametrize(("model_of", "batches_of", "loss_fn", "why"), NO_CHAIN.values(), ids=NO_CHAIN)
def test_without_a_chain(model_of, batches_of, loss_fn, why, tmp_path, caplog):
    """Plans run one by one, and their losses and KL are those of INC's converted model, bit for bit.

    But for a linear layer of few rows: INC stores its weight transposed, and BLAS adds up in another order.
    """
    torch.manual_seed(0)
    model, batches = model_of().eval(), batches_of()
    before = helpers.state(model)
    caplog.set_level(logging.INFO, LOGGER.name)
    meters = [
        made(model, tmp_path / through, batches, batches, loss_fn, through=through)
        for through in ("inc", "hooks")
    ]
    plans = plans_of(meters[0])
    for meter in meters:
        meter.measure(plans, *WORDS)
        assert meter.together == (meter.through == "hooks")
    assert caplog.text.count(f"plans are measured one by one: {why}") == 1
    assert "in one sweep" not in caplog.text
    through_inc, together = (values(meter, plans) for meter in meters)
    for number, plan in enumerate(plans):
        near = 1e-6 if "head" in plan else 0.0
        assert together[1 + number] == pytest.approx(through_inc[1 + number], rel=near, abs=0.0)
    assert together[0] == through_inc[0]
    assert together[1 + len(plans) :] == through_inc[1 + len(plans) :]
    assert len({str(losses) for losses in together[: 1 + len(plans)]}) > len(plans) // 2
    assert (meters[1].divergence(plans[0]) is not None) == (loss_fn is None)
    alone = made(model, tmp_path / "alone", batches, batches, loss_fn, through="hooks")
    assert values(alone, plans) == together
    helpers.assert_same_state(before, helpers.state(model))


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
