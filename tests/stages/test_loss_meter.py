"""Measured losses and KL, through INC and hooks: against plain runs with the same ops rounded."""

import helpers
import numpy as np
import pytest
import torch
from naive import kl_of_positions

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.attention_kernels import attention_kernel
from inc_mp_plugin.model.heldout import HeldOutBatches
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.subject import subject_in_memory
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding
from inc_mp_plugin.stages import comparison
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.stages.loss_meter import LossMeter

FORMAT, SCALES = "fp8_e4m3", Scales("maxabs_arbitrary", "cpu")
CALIBRATION = [{"input_ids": helpers.tokens(4, seed=1)}]
MASK = torch.tensor([[1] * 12, [0] * 4 + [1] * 8])
HELDOUT = [
    {"input_ids": helpers.tokens(2, seed=2), "attention_mask": MASK},
    {"input_ids": helpers.tokens(1, 9, seed=3)},
]
FEW = ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.matmul_qk", "lm_head")


def made(
    model, folder, heldout=HELDOUT, calibration=CALIBRATION, loss_fn=None, through="inc", formats=(FORMAT,)
):
    subject, graph = subject_in_memory(model, calibration, loss_fn), capture(model, calibration[0])
    samples = HeldOutBatches(heldout, 3, 0, through).heldout(verify=False)
    ops = [op.name for op in graph.ops]
    return LossMeter(Job(base="fp32", formats=formats), samples, subject, graph, ops=ops, out=folder)


@pytest.fixture(scope="module")
def model():
    return helpers.language_model("llama")


@pytest.fixture(scope="module", params=["inc", "hooks"])
def meter(request, model, tmp_path_factory):
    return made(model, tmp_path_factory.mktemp("meter"), through=request.param)


@torch.no_grad()
def plain(model, ops, batch):
    """Losses and logits with these ops rounded, by the calibration's scales."""
    graph = capture(model, CALIBRATION[0])
    rounding = Rounding(SCALES, (FORMAT,), observe_maxabs(model, graph, CALIBRATION, None))
    with as_measured(model), torch.no_grad(), rounded(model, rounding, dict.fromkeys(ops, FORMAT)):
        return language_model_loss(model, batch), model(**batch).logits


def test_losses_and_kl_against_plain_runs(model, meter):
    before = helpers.state(model)
    divergence, losses = meter.divergence(FEW), meter.losses(FEW)
    helpers.assert_same_state(before, helpers.state(model))
    kl, flips, expected = [], 0, []
    for batch in HELDOUT:
        base, (with_ops, logits) = plain(model, (), batch)[1], plain(model, FEW, batch)
        expected += with_ops.tolist()
        for row, mask in enumerate(batch.get("attention_mask", torch.ones(len(base), base.shape[1]))):
            counted = (mask[:-1] * mask[1:]).bool()  # a token that is predicted from another one
            a, b = base[row, :-1][counted], logits[row, :-1][counted]
            kl.append(kl_of_positions(a, b).numpy())
            flips += int((a.argmax(-1) != b.argmax(-1)).sum())
    assert losses == pytest.approx(expected, rel=1e-5)
    assert divergence.positions.tolist() == [11, 7, 8]
    assert divergence.kl == pytest.approx([part.sum() for part in kl], rel=1e-3)
    assert divergence.mean == pytest.approx(np.concatenate(kl).mean(), rel=1e-3)
    assert divergence.p99 == pytest.approx(np.quantile(np.concatenate(kl), 0.99), rel=1e-3)
    assert divergence.flips.sum() == flips
    tokens = divergence.positions
    change = ((losses - meter.losses(())) * tokens).sum() / tokens.sum()  # labels are all tokens that count
    assert divergence.perplexity_ratio == pytest.approx(np.exp(change), rel=1e-6)
    assert meter.divergence(()) is None


def test_stored_once_and_not_mixed_up(model, meter, monkeypatch):
    divergence = meter.divergence(FEW)
    again = made(model, meter._out, through=meter.through)
    monkeypatch.setattr(LossMeter, "_comparison", None)  # nothing runs
    assert again.divergence(FEW).mean == divergence.mean
    other = made(model, meter._out, through={"inc": "hooks", "hooks": "inc"}[meter.through])
    assert other._partial.path != again._partial.path
    assert other.depends_on != again.depends_on
    assert not other._measured


@pytest.mark.parametrize("most", [0, 8 * 11 * 96])
def test_logits_that_do_not_fit_are_computed_again(model, meter, tmp_path, monkeypatch, most):
    """None fits, or the first batch alone: the same numbers, bit by bit, and nothing is left behind."""
    expected = meter.divergence(FEW)
    logits = comparison.BaseLogits(tmp_path / "logits", most_bytes=most)
    narrow = made(model, tmp_path, through=meter.through)
    monkeypatch.setattr(narrow._comparison, "_logits", logits)
    assert narrow.losses(()).tolist() == meter.losses(()).tolist()
    for _ in range(2):
        divergence = narrow._comparison.of(dict.fromkeys(FEW, FORMAT))[1]
        assert divergence.kl.tolist() == expected.kl.tolist()
        assert divergence.p99 == expected.p99


def test_the_floor_is_the_other_kernel_against_this(model, meter):
    """By hand: SDPA's logits against eager's; far below a plan's KL, and the kernel is put back."""
    floor, before = meter.floor(), helpers.state(model)
    kl, positions = 0.0, 0
    for batch in HELDOUT:
        base = plain(model, (), batch)[1]
        model.set_attn_implementation("sdpa")
        with torch.no_grad():
            other = model(**batch).logits
        model.set_attn_implementation(before["attention"])
        mask = batch.get("attention_mask", torch.ones(len(base), base.shape[1]))
        counted = (mask[:, :-1] * mask[:, 1:]).bool()
        kl += float(kl_of_positions(base[:, :-1][counted], other[:, :-1][counted]).sum())
        positions += int(counted.sum())
    assert 0 < floor < 1e-3 * meter.divergence(FEW).mean
    assert floor == pytest.approx(kl / positions, rel=0.5)
    helpers.assert_same_state(before, helpers.state(model))
    assert meter.conditions() == ("eager", torch.get_num_threads())
    assert attention_kernel(model) == before["attention"]


def test_no_logits_no_divergence(tmp_path):
    """A regression, a loss that runs the model twice, and a tensor that may hold anything: the loss alone."""
    images = [torch.randn(3, 3, 8, 8)]
    cnn = made(helpers.ResidualCNN().eval(), tmp_path, images, images, helpers.squared_loss, through="hooks")
    assert cnn.losses(("head",)).shape == (3,)
    assert cnn.divergence(("head",)) is None
    assert cnn._comparison.of_other_kernel() is None
    assert cnn.conditions().attention is None

    def twice(model, batch):
        return language_model_loss(model, batch) + language_model_loss(model, batch)

    meter = made(helpers.language_model("llama"), tmp_path, loss_fn=twice, through="hooks")
    assert meter.divergence(FEW) is None
    assert "2 times" in meter._comparison.why_not


def test_the_divergence_of_a_classifier(tmp_path):
    model, batch = helpers.encoder(), {"input_ids": helpers.tokens(3), "labels": torch.tensor([0, 2, 1])}
    meter = made(model, tmp_path, [batch], [batch], helpers.classification_loss, through="hooks")
    divergence = meter.divergence(("classifier",))
    assert (divergence.per, divergence.positions.tolist()) == ("sample", [1, 1, 1])
    with torch.no_grad():
        base = model(input_ids=batch["input_ids"]).logits
    rounding = meter._model._rounder
    with rounded(model, rounding, {"classifier": FORMAT}), torch.no_grad():
        expected = kl_of_positions(base, model(input_ids=batch["input_ids"]).logits)
    assert divergence.kl == pytest.approx(expected.numpy(), rel=1e-3)


def test_an_interrupt_and_a_nan_leave_the_model_as_it_came(model, tmp_path, monkeypatch):
    meter, before = made(model, tmp_path, through="hooks"), helpers.state(model)

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(comparison, "divergence_rows", stop)
        meter.losses(FEW)
    helpers.assert_same_state(before, helpers.state(model))
    del meter
    assert not list(tmp_path.glob(".base-logits-*"))
    broken = made(model, tmp_path, through="hooks")
    real = broken._comparison.of
    monkeypatch.setattr(broken._comparison, "of", lambda formats: (np.nan * real({})[0], None))
    with pytest.raises(NonFiniteError, match="a loss is NaN or infinite with 3 ops"):
        broken.losses(FEW)
    helpers.assert_same_state(before, helpers.state(model))
    with pytest.raises(InputError, match="no model of INC's through hooks"):
        _ = broken.switch
