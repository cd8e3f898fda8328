"""The KL divergence of ops by drawn labels: against enumeration, autograd, and what is measured."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch
import transformers
from naive import naive_sensitivity
from torch import nn
from torch.testing import assert_close

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.distributions import Distributions, distributions
from inc_mp_plugin.model.losses import IGNORED_LABEL
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity import backward
from inc_mp_plugin.sensitivity.drawn_labels import draw_labels, drawn_losses
from inc_mp_plugin.sensitivity.resume import measure_in_steps
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity

SCALES, E4M3 = Scales("maxabs_arbitrary", "cpu"), ("fp8_e4m3",)
CLASSES, POSITIONS = 4, 3


class TwoLayers(nn.Module):
    """Two linear ops, and a distribution at each of a few positions."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, CLASSES)

    def forward(self, x):
        return SimpleNamespace(logits=2.0 * self.second(torch.tanh(self.first(x))))


GRAPH = Graph(
    tuple(Op(name, "linear", 1, 30, 1) for name in ("first", "second")), (("first",), ("second",)), (), {}
)


def fisher(model, x):
    """F of each op's weight, by autograd in float64: the sum over positions of J^T (diag p - p p^T) J."""
    model, x = model.double(), x.double()
    weights = [model.first.weight, model.second.weight]
    logits = model(x).logits.reshape(-1, CLASSES)
    matrices = [torch.zeros(w.numel(), w.numel(), dtype=torch.float64) for w in weights]
    for row in logits:
        p = row.softmax(0)
        rows = [torch.autograd.grad(z, weights, retain_graph=True) for z in row]
        for matrix, place in zip(matrices, range(2), strict=True):
            jacobian = torch.stack([grads[place].flatten() for grads in rows])
            matrix += jacobian.T @ (torch.diag(p) - torch.outer(p, p)) @ jacobian
    model.float()
    return [matrix.detach() for matrix in matrices]


def each_of_all_labels(monkeypatch, model, x):
    """The sensitivities of every combination of labels, each with its probability."""
    p = model(x).logits.softmax(-1).double().detach()[0]
    for labels in itertools.product(range(CLASSES), repeat=POSITIONS):
        probability = math.prod(float(p[t, y]) for t, y in enumerate(labels))

        def given(found, numbers, labels=labels, **settings):
            return nn.functional.cross_entropy(
                found.logits[0], torch.tensor(labels), reduction="sum"
            ).unsqueeze(0)

        monkeypatch.setattr(backward, "drawn_losses", given)
        yield probability, measure_sensitivity(model, GRAPH, [x], yardstick="kl")


def test_the_mean_over_all_labels_is_the_fisher_form(monkeypatch):
    """Of 64 combinations: half of sum z^2 F_zz over the weights, exactly."""
    model, x = TwoLayers(), torch.randn(1, POSITIONS, 5, generator=torch.Generator().manual_seed(1))
    total, whole = np.zeros(2), 0.0
    for probability, sensitivity in each_of_all_labels(monkeypatch, model, x):
        total += probability * sensitivity.weight[0]
        whole += probability
    assert whole == pytest.approx(1.0, abs=1e-6)
    weights = (model.first.weight, model.second.weight)
    for value, matrix, weight in zip(total, fisher(model, x), weights, strict=True):
        expected = 0.5 * (weight.detach().double().flatten() ** 2 * matrix.diagonal()).sum()
        assert value == pytest.approx(float(expected), rel=1e-6)


def test_drawn_labels_converge_to_it():
    model, x = TwoLayers(), torch.randn(1, POSITIONS, 5, generator=torch.Generator().manual_seed(1))
    weights = [model.first.weight.detach().double(), model.second.weight.detach().double()]
    expected = [
        0.5 * float((w.flatten() ** 2 * m.diagonal()).sum())
        for w, m in zip(weights, fisher(model, x), strict=True)
    ]
    few, many = (
        measure_sensitivity(model, GRAPH, [x], yardstick="kl", estimate=Estimate(draws=draws)).weight[0]
        for draws in (50, 1500)
    )
    assert many == pytest.approx(expected, rel=0.08)
    assert np.abs(many / expected - 1).max() < max(np.abs(few / expected - 1).max(), 0.05)


@pytest.mark.parametrize("op", [0, 1])
def test_the_measured_divergence_is_the_fisher_form_of_small_errors(op):
    """KL at an error q scaled by 1, 1/2, 1/4 comes to q^T F q / 2 at least as fast as the scale falls."""
    model, x = TwoLayers(), torch.randn(1, POSITIONS, 5, generator=torch.Generator().manual_seed(1))
    matrix = fisher(model, x)[op]
    weight = (model.first.weight, model.second.weight)[op]
    generator = torch.Generator().manual_seed(5)
    error = 0.2 * weight.detach().double() * torch.randn(weight.shape, generator=generator).double()
    model, x = model.double(), x.double()
    weight = (model.first.weight, model.second.weight)[op]
    base = model(x).logits.log_softmax(-1).detach()
    deviations = []
    for scale in (1.0, 0.5, 0.25):
        q = scale * error
        with torch.no_grad():
            weight += q
            moved = model(x).logits.log_softmax(-1)
            weight -= q
        measured = float((base.exp() * (base - moved)).sum())
        predicted = 0.5 * float(q.flatten() @ matrix @ q.flatten())
        deviations.append(abs(measured / predicted - 1))
    assert deviations[2] < 0.6 * deviations[1] < 0.4 * deviations[0]


def of_drawn_labels(seed=0, draw=0):
    """The loss of each sample with the labels that are drawn of it, whatever the dtype of the model."""

    def loss(model, sample):
        number = next(i for i, ids in enumerate(IDS) if torch.equal(ids, sample["input_ids"][0]))
        found = distributions(model, sample)
        rounded = Distributions(found.logits.float(), found.counted)
        labels = draw_labels(rounded, [1 + number], seed=seed, draw=draw)
        logits = found.logits.flatten(0, 1)
        return nn.functional.cross_entropy(
            logits, labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )

    return loss


IDS = helpers.tokens(3, 8)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_rows_of_samples_equal_naive_autograd(name):
    model = helpers.language_model(name)
    batch = {"input_ids": IDS}
    graph = capture(model, batch)
    sensitivity = measure_sensitivity(model, graph, [batch], yardstick="kl")
    by_hand, losses = naive_sensitivity(model, sensitivity.ops, [batch], of_drawn_labels())
    assert sensitivity.loss == pytest.approx(losses, rel=1e-4)
    assert sensitivity.tokens.tolist() == [7.0, 7.0, 7.0]
    for column, op in enumerate(sensitivity.ops):
        measured = 2 * torch.tensor(sensitivity.input[:, column] + sensitivity.weight[:, column])
        assert_close(measured, torch.tensor(by_hand[op]).double(), rtol=2e-4, atol=1e-10)


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_one_row_of_a_batch_is_the_gradient_of_all_samples_together(name):
    """Against autograd of the sum of all losses: no sample is told apart, in experts neither."""
    model = helpers.mixture(name) if "moe" in name else helpers.language_model(name)
    batch = {"input_ids": IDS}
    graph = capture(model, batch)
    sensitivity = measure_sensitivity(model, graph, [batch], yardstick="kl", estimate=Estimate("batch"))
    assert sensitivity.input.shape == (1, len(sensitivity.ops))
    assert (sensitivity.tokens.tolist(), sensitivity.sizes.tolist(), sensitivity.samples) == (
        [21.0],
        [3.0],
        3,
    )
    found = distributions(model, batch)
    (drawn_losses(found, [1, 2, 3], seed=0, draw=0).sum()).backward()
    for column, op in enumerate(sensitivity.ops):
        module = dict(model.named_modules()).get(op)
        if module is not None and isinstance(module, nn.Linear):
            expected = 0.5 * float((module.weight * module.weight.grad).double().square().sum())
            assert sensitivity.weight[0, column] == pytest.approx(expected, rel=1e-4)


def test_rows_of_samples_do_not_depend_on_batches_or_padding():
    model = helpers.language_model("llama")
    short = IDS[:, :5]
    padded = torch.cat([short, torch.zeros(3, 3, dtype=torch.long)], dim=1)
    mask = (torch.arange(8) < 5).long().expand(3, 8)
    graph = capture(model, {"input_ids": short})
    measure = lambda *batches: measure_sensitivity(model, graph, list(batches), yardstick="kl")  # noqa: E731
    whole = measure({"input_ids": short})
    single = measure(*({"input_ids": ids[None]} for ids in short))
    with_padding = measure({"input_ids": padded, "attention_mask": mask})
    for other in (single, with_padding):
        assert other.tokens.tolist() == whole.tokens.tolist() == [4.0, 4.0, 4.0]
        assert other.loss == pytest.approx(whole.loss, rel=1e-4)
        assert other.input == pytest.approx(whole.input, rel=2e-3, abs=1e-9)
        assert other.weight == pytest.approx(whole.weight, rel=2e-3, abs=1e-9)


def test_the_loss_is_not_changed_by_a_divergence_beside_it():
    """One forward pass for both; the same numbers as each alone."""
    model, batches = helpers.language_model("llama"), [{"input_ids": IDS}]
    graph = capture(model, batches[0])
    keywords = {"scales": SCALES, "formats": E4M3}
    loss, kl, both = (
        measure_sensitivity(model, graph, batches, yardstick=yardstick, **keywords)
        for yardstick in ("loss", "kl", "both")
    )
    for one, other in ((loss, both), (kl, both.kl)):
        assert (one.input == other.input).all()
        assert (one.weight == other.weight).all()
        assert (one.rounding["fp8_e4m3"] == other.rounding["fp8_e4m3"]).all()
    assert kl.yardstick == both.kl.yardstick == "kl"
    assert kl.measured_drift == (0.0, 0.0)
    squares = both.kl.rounding["fp8_e4m3"] + both.kl.shared["fp8_e4m3"]
    first_order = squares.sum(axis=1).mean() / 7
    before = loss.rounding["fp8_e4m3"].sum(axis=1).mean()
    assert both.measured_drift.value * first_order == pytest.approx(loss.measured_drift.value * before)


def test_more_draws_share_the_forward_pass():
    model, batches = helpers.language_model("llama"), [{"input_ids": IDS}]
    graph, forwards = capture(model, batches[0]), []
    handle = model.register_forward_hook(lambda *_: forwards.append(1))
    several = measure_sensitivity(model, graph, batches, yardstick="kl", estimate=Estimate("batch", draws=3))
    handle.remove()
    assert len(forwards) == 1
    singles = []
    for draw in range(3):
        found = distributions(model, batches[0])
        model.zero_grad()
        drawn_losses(found, [1, 2, 3], seed=0, draw=draw).sum().backward()
        weight = model.model.layers[0].mlp.up_proj.weight
        singles.append(0.5 * float((weight * weight.grad).square().sum()))
    column = several.ops.index("model.layers.0.mlp.up_proj")
    assert several.weight[0, column] == pytest.approx(np.mean(singles), rel=1e-4)
    assert several.draws == 3


def encoder(kind, **changes):
    config = transformers.BertConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=96,
        **changes,
    )
    torch.manual_seed(0)
    return getattr(transformers, f"Bert{kind}")(config).eval()


@pytest.mark.parametrize(
    ("kind", "batch", "tokens"),
    [
        ("ForSequenceClassification", {}, 1.0),
        ("ForTokenClassification", {}, 5.0),
        ("ForMaskedLM", {}, 5.0),
        ("ForMaskedLM", {"labels": torch.tensor([[-100, 3, -100, -100, 7, 1, -100, -100]] * 3)}, 3.0),
    ],
    ids=["classes", "classes of tokens", "masked, without labels", "masked, with labels"],
)
def test_other_distributions_need_no_labels(kind, batch, tokens):
    model = encoder(kind)
    mask = (torch.arange(8) < 5).long().expand(3, 8)
    whole = {"input_ids": IDS, "attention_mask": mask, **batch}
    graph = capture(model, whole)
    sensitivity = measure_sensitivity(model, graph, [whole], yardstick="kl", scales=SCALES, formats=E4M3)
    assert sensitivity.tokens.tolist() == [tokens] * 3
    assert (sensitivity.input.sum(axis=0) > 0).all()


@pytest.mark.parametrize(
    ("model", "batch", "text"),
    [
        (lambda: encoder("ForQuestionAnswering"), {}, "has several outputs, .* give tau instead of kl"),
        (
            lambda: encoder("ForSequenceClassification", num_labels=1),
            {},
            "for regression predicts no distribution",
        ),
        (
            lambda: encoder("ForSequenceClassification"),
            {"labels": torch.rand(3, 2)},
            "for multi label classification predicts no distribution",
        ),
        (lambda: encoder("Model"), {}, "gives no logits of shape"),
    ],
    ids=["question answering", "regression", "several classes at once", "no head"],
)
def test_models_without_a_distribution_are_refused(model, batch, text):
    model = model()
    batch = {"input_ids": IDS, **batch}
    graph = capture(model, batch)
    before = helpers.state(model)
    with pytest.raises(InputError, match=text):
        measure_sensitivity(model, graph, [batch], yardstick="kl")
    helpers.assert_same_state(before, helpers.state(model))


def test_a_loss_function_that_does_not_run_the_model():
    model, batch = TwoLayers(), torch.randn(2, POSITIONS, 5)

    def loss(model, batch):
        return model.second(torch.tanh(model.first(batch))).square().sum(dim=(1, 2))

    with pytest.raises(InputError, match="loss_fn does not run the model itself"):
        measure_sensitivity(model, GRAPH, [batch], loss, yardstick="both")


@pytest.mark.parametrize(("rows", "draws", "text"), [("samples", 1, "estimator"), ("batch", 0, "draws is 0")])
def test_settings_that_are_none(rows, draws, text):
    with pytest.raises(InputError, match=text):
        measure_sensitivity(
            TwoLayers(), GRAPH, [torch.randn(2, 3, 5)], yardstick="kl", estimate=Estimate(rows, draws)
        )


def test_half_precision_does_not_underflow():
    model = helpers.language_model("llama")
    batches = [{"input_ids": IDS}]
    graph = capture(model, batches[0])
    exact = measure_sensitivity(model, graph, batches, yardstick="kl")
    half = measure_sensitivity(model.half(), graph, batches, yardstick="kl")
    # Labels of other logits may be others; most are the same.
    assert half.weight.sum() == pytest.approx(exact.weight.sum(), rel=0.2)


@pytest.mark.parametrize("rows", ["sample", "batch"])
def test_an_interrupt_loses_nothing(rows, tmp_path):
    model = helpers.language_model("llama")
    batches = [{"input_ids": helpers.tokens(2, 8, seed)} for seed in range(3)]
    graph = capture(model, batches[0])
    settings = {"kl": Estimate(rows), "scales": SCALES, "formats": E4M3}
    whole = measure_in_steps(
        model, graph, batches, None, partial=Partial(tmp_path / "whole.npz", "k"), **settings
    )
    saved = Partial(tmp_path / "partial.npz", "k")
    passes = []

    def stop(*_):
        passes.append(torch.is_grad_enabled())
        # The trial of two samples, with the loss, and a batch; the second batch is interrupted.
        if sum(passes) > 2:
            raise KeyboardInterrupt

    handle = model.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        measure_in_steps(model, graph, batches, None, partial=saved, **settings)
    handle.remove()
    resumed = measure_in_steps(model, graph, batches, None, partial=saved, **settings)
    for one, other in ((whole, resumed), (whole.kl, resumed.kl)):
        assert (one.input == other.input).all()
        assert (one.rounding["fp8_e4m3"] == other.rounding["fp8_e4m3"]).all()
    assert whole.kl.sizes.tolist() == ([2.0] * 3 if rows == "batch" else [1.0] * 6)
    assert replace(whole.kl, kl=None).tokens.sum() == 42
