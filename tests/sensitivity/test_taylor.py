"""Sensitivities against the naive computation, and all that could go wrong while measuring."""

import helpers
import numpy as np
import pytest
import torch
from naive import naive_sensitivity
from torch import nn

from inc_mp_plugin.core.errors import InputError, NonFiniteError, PluginError
from inc_mp_plugin.core.graph import Graph, Op
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.sensitivity.taylor import measure_sensitivity


def text_batches():
    ids = helpers.tokens(5)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[4, 5:] = 0
    return [
        {"input_ids": ids[:3], "attention_mask": mask[:3]},
        {"input_ids": ids[3:], "attention_mask": mask[3:]},
    ]


def encoder_batches():
    return [{"input_ids": helpers.tokens(4), "labels": torch.tensor([0, 2, 1, 1])}]


def images():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, 3, 8, 8, generator=generator) for n in (3, 2)]


def vectors():
    return [torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))]


CASES = {
    "linear and bgemm, grouped queries": (
        lambda: helpers.language_model("llama"),
        text_batches,
        language_model_loss,
    ),
    "tied head": (
        lambda: helpers.language_model("llama", tie_word_embeddings=True),
        text_batches,
        language_model_loss,
    ),
    "query and key norms": (
        lambda: helpers.language_model("qwen3"),
        text_batches,
        language_model_loss,
    ),
    "parallel attention and mlp": (
        lambda: helpers.language_model("gpt_neox"),
        text_batches,
        language_model_loss,
    ),
    "linear with x @ weight.T": (
        lambda: helpers.language_model("falcon"),
        text_batches,
        language_model_loss,
    ),
    "experts": (lambda: helpers.mixture("mixtral"), text_batches, language_model_loss),
    "experts beside a shared one": (
        lambda: helpers.mixture("qwen2_moe"),
        text_batches,
        language_model_loss,
    ),
    "encoder with its own loss": (helpers.encoder, encoder_batches, helpers.classification_loss),
    "conv2d: groups, stride, dilation": (helpers.ResidualCNN, images, helpers.squared_loss),
    "conv2d: circular padding": (
        lambda: helpers.ResidualCNN("circular"),
        images,
        helpers.squared_loss,
    ),
    "called twice, shared input": (helpers.HandWritten, vectors, helpers.squared_loss),
}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if "experts" in case else ()) for case in CASES]
)
def test_equals_the_naive_computation(case):
    build, make_batches, loss_fn = CASES[case]
    torch.manual_seed(0)
    model, batches = build(), make_batches()
    graph = capture(model, batches[0])
    sensitivity = measure_sensitivity(model, graph, batches, loss_fn)
    names = [op.name for op in graph.ops]
    expected, losses = naive_sensitivity(model, names, batches, loss_fn)
    np.testing.assert_allclose(sensitivity.loss, losses, rtol=1e-5)
    assert sensitivity.ops == tuple(names)
    for column, name in enumerate(names):
        per_sample = sensitivity.input[:, column] + sensitivity.weight[:, column]
        np.testing.assert_allclose(per_sample, expected[name], rtol=1e-4, err_msg=name)
        assert sensitivity.total[name] == pytest.approx(np.mean(expected[name]), rel=1e-4)


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if "experts" in case else ()) for case in CASES]
)
def test_does_not_depend_on_the_batch_size(case):
    build, make_batches, loss_fn = CASES[case]
    torch.manual_seed(0)
    model, batches = build(), make_batches()
    graph = capture(model, batches[0])
    together = measure_sensitivity(model, graph, batches, loss_fn)
    singles = [
        {k: v[i : i + 1] for k, v in b.items()} if isinstance(b, dict) else b[i : i + 1]
        for b in batches
        for i in range(len(b["input_ids"] if isinstance(b, dict) else b))
    ]
    alone = measure_sensitivity(model, graph, singles, loss_fn)
    np.testing.assert_allclose(together.input, alone.input, rtol=2e-4)
    np.testing.assert_allclose(together.weight, alone.weight, rtol=2e-4)


def test_tokens_routed_to_experts_are_told_apart():
    torch.manual_seed(1)
    model = helpers.RoutedExperts()
    batches = [torch.randn(2, 3, 6), torch.randn(3, 4, 6)]
    names = ["experts.0", "experts.1"]
    # The routing depends on values, so the graph is written by hand.
    graph = Graph(
        tuple(Op(name, "linear", 1, 36, 1) for name in names),
        tuple((name,) for name in names),
        (),
        {},
    )
    sensitivity = measure_sensitivity(model, graph, batches, helpers.squared_loss)
    expected, _ = naive_sensitivity(model, names, batches, helpers.squared_loss)
    for column, name in enumerate(names):
        per_sample = sensitivity.input[:, column] + sensitivity.weight[:, column]
        np.testing.assert_allclose(per_sample, expected[name], rtol=1e-4)


def test_by_hand_on_one_weight():
    """G = (w x)^2: dg/dx = 2 w^2 x, dg/dw = 2 w x^2, so both parts of s are (2 w^2 x^2)^2."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.constant_(model[0].weight, 3.0)
    batch = torch.tensor([[2.0], [0.5]])
    graph = capture(model, batch)
    sensitivity = measure_sensitivity(model, graph, [batch], lambda m, b: m(b).square().sum(dim=1))
    np.testing.assert_allclose(sensitivity.loss, [36.0, 2.25])
    np.testing.assert_allclose(sensitivity.input[:, 0], [72.0**2, 4.5**2], rtol=1e-6)
    np.testing.assert_allclose(sensitivity.weight[:, 0], [72.0**2, 4.5**2], rtol=1e-6)
    assert sensitivity.total["0"] == pytest.approx(72.0**2 + 4.5**2)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_the_model_leaves_as_it_came(training):
    model = helpers.language_model("llama")
    model.train(training)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)
    graph = capture(model, text_batches()[0])
    before = helpers.state(model)
    with torch.inference_mode():
        measure_sensitivity(model, graph, text_batches())
    helpers.assert_same_state(before, helpers.state(model))

    def interrupted(model, batch):
        language_model_loss(model, batch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure_sensitivity(model, graph, text_batches(), interrupted)
    helpers.assert_same_state(before, helpers.state(model))


def test_dropout_is_off():
    model = helpers.language_model("llama", attention_dropout=0.5)
    graph = capture(model, text_batches()[0])
    calm = measure_sensitivity(model, graph, text_batches())
    model.train()
    np.testing.assert_array_equal(calm.input, measure_sensitivity(model, graph, text_batches()).input)


@pytest.mark.parametrize("where", ["lm_head", "model.layers.0.mlp.up_proj"])
def test_nan_in_a_weight_names_the_op(where):
    model = helpers.language_model("llama")
    graph = capture(model, text_batches()[0])
    with torch.no_grad():
        model.get_submodule(where).weight[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=f"output of op '{where}'"):
        measure_sensitivity(model, graph, text_batches())


def test_infinite_gradient_names_the_op():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return (self.b(self.a(x)) * 0.0).abs().sqrt()

    model = Root()
    batch = torch.randn(2, 2)
    with pytest.raises(NonFiniteError, match="gradient of op 'b'"):
        measure_sensitivity(model, capture(model, batch), [batch], helpers.summed_loss)


def test_input_changed_in_place_is_refused():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            x = torch.tanh(self.first(x)) + 0.0
            y = self.second(x)
            x.add_(1.0)
            return y + x

    model, batch = InPlace(), torch.randn(2, 3)
    with pytest.raises(PluginError, match="'second' is changed in place"):
        measure_sensitivity(model, capture(model, batch), [batch], helpers.squared_loss)


def test_ops_that_no_batch_ran_are_left_out():
    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.always, self.rarely = nn.Linear(3, 3), nn.Linear(3, 3)
            self.rare = True

        def forward(self, x):
            x = self.always(x)
            return self.rarely(x) if self.rare else x

    model, batch = Sometimes(), torch.randn(2, 3)
    graph = capture(model, batch)
    model.rare = False
    assert measure_sensitivity(model, graph, [batch], helpers.squared_loss).ops == ("always",)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda m, b: language_model_loss(m, b).mean(), r"shape \(\) for 2 samples; it must return one"),
        (lambda m, b: language_model_loss(m, b).detach(), "the loss has no gradient"),
    ],
    ids=["one number", "detached"],
)
def test_wrong_loss_functions(loss_fn, message):
    model = helpers.language_model("llama")
    graph = capture(model, text_batches()[0])
    with pytest.raises(InputError, match=message):
        measure_sensitivity(model, graph, text_batches(), loss_fn)


def test_wrong_batches():
    model = helpers.language_model("llama")
    graph = capture(model, text_batches()[0])
    with pytest.raises(InputError, match="no calibration batch"):
        measure_sensitivity(model, graph, [])
    with pytest.raises(InputError, match="give loss_fn"):
        measure_sensitivity(model, graph, [helpers.tokens(2)])
    with pytest.raises(InputError, match="no token to predict"):
        measure_sensitivity(model, graph, [{"input_ids": helpers.tokens(2, 1)}])
    with pytest.raises(InputError, match="not a module of this model"):
        measure_sensitivity(helpers.encoder(), graph, text_batches())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_half_precision_agrees_with_full(dtype):
    model = helpers.language_model("llama")
    graph = capture(model, text_batches()[0])
    full = measure_sensitivity(model, graph, text_batches()).total
    half = measure_sensitivity(model.to(dtype), graph, text_batches()).total
    ratios = np.array([half[name] / full[name] for name in full])
    assert np.all((ratios > 0.9) & (ratios < 1.1))
