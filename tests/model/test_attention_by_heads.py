"""Attention of some key heads at a time: the same numbers as of all heads, with fewer scores at once."""

from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.model import attention, attention_weights
from inc_mp_plugin.model.attention import exposed_bgemms
from inc_mp_plugin.model.attention_by_heads import attention_by_heads, by_heads

FP8 = {"scales": mp.Scales("maxabs_arbitrary", "cpu"), "formats": ("fp8_e4m3",)}
MODES = {
    "loss": {},
    "kl by batches": {"yardstick": "kl", "estimate": Estimate("batch", 2), **FP8},
    "both": {"yardstick": "both", **FP8},
}


def layer(**config):
    """A module of attention with products, and a list of what they gave."""
    module = torch.nn.Module().eval()
    module.matmul_qk, module.matmul_av = attention.Matmul(), attention.Matmul()
    module.config = SimpleNamespace(**config)
    seen = []
    for product in (module.matmul_qk, module.matmul_av):
        product.register_forward_hook(lambda *call: seen.append(call[-1]))
    return module, seen


def states(dtype, *, keys=4, shared=2, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, keys * shared, 5, 8), (2, keys, 6, 8), (2, keys, 6, 8)]
    drawn = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [state.requires_grad_(requires_grad) for state in drawn]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("mask", [None, (8, 5, 6), (2, 8, 5, 6), (2, 1, 5, 6), (5, 6)], ids=str)
@pytest.mark.parametrize("at_once", [1, 3 * 2 * 2 * 5 * 6], ids=["one key head", "three"])
def test_outputs_and_gradients_are_those_of_all_heads(monkeypatch, at_once, mask, dtype):
    module, seen = layer()
    mask = None if mask is None else torch.randn(mask, generator=torch.Generator().manual_seed(1)).to(dtype)
    options = {"attention_mask": mask, "scaling": 0.3, "softcap": 2.0}

    def outcome(function):
        inputs = states(dtype)
        output, _ = function(module, *inputs, **options)
        with torch.no_grad():
            assert torch.equal(function(module, *inputs, **options)[0], output)
        return [output, *torch.autograd.grad(output.float().square().sum(), inputs)]

    expected = outcome(attention.bgemm_attention)
    monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", at_once)
    seen.clear()
    got = outcome(attention_by_heads)
    assert all(map(torch.equal, got, expected))
    of_heads = [4] if at_once == 1 else [3, 1]
    assert {product.shape[1] for product in seen} == ({1} if at_once == 1 else set(of_heads))


def test_products_are_seen_when_gradients_are_due_and_nothing_else_is_kept(monkeypatch):
    monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", 1)
    module, seen = layer()
    inputs, kept = states(torch.float32), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        output, weights = attention_by_heads(module, *inputs, None)
    assert [x.data_ptr() for x in kept] == [x.data_ptr() for x in inputs]
    assert not seen
    assert weights is None
    output.sum().backward()
    assert [x.shape for x in seen] == 4 * [(2, 1, 2, 5, 6), (2, 1, 2, 5, 8)]
    assert all(x.requires_grad for x in seen)


@pytest.mark.parametrize("case", ["a single key head", "weights asked for", "dropout", "learned mask"])
def test_all_heads_at_once_where_groups_would_not_do(monkeypatch, case):
    monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", 1)
    module, _ = layer(output_attentions=case == "weights asked for")
    module.train(case == "dropout")
    inputs = states(torch.float32, keys=1 if case == "a single key head" else 4)
    mask = torch.zeros(5, 6).requires_grad_(case == "learned mask")
    _, weights = attention_by_heads(module, *inputs, mask, dropout=0.5)
    assert weights.shape == (2, inputs[0].shape[1], 5, 6)


@pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
@pytest.mark.parametrize("name", helpers.mostly_slow(["llama", "gemma3", "mixtral", "falcon"], "llama"))
def test_sensitivities_are_those_of_all_heads(monkeypatch, name, mode):
    model = helpers.language_model(name)
    batches = [{"input_ids": helpers.tokens(3, seed=seed)} for seed in range(2)]
    graph = mp.capture(model, batches[0])
    expected = mp.measure_sensitivity(model, graph, batches, memory="high", **mode)
    monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", 1)
    before = helpers.state(model)
    got = mp.measure_sensitivity(model, graph, batches, memory="low", **mode)
    helpers.assert_same_state(before, helpers.state(model))
    for own, other in [(got, expected), *([(got.kl, expected.kl)] if expected.kl else [])]:
        assert own.ops == other.ops
        for part in ("loss", "input", "weight"):
            np.testing.assert_allclose(getattr(own, part), getattr(other, part), rtol=1e-6)
        for parts in ("rounding", "second", "shared", "maxabs"):
            for key, value in getattr(other, parts).items():
                np.testing.assert_allclose(getattr(own, parts)[key], value, rtol=1e-6, atol=1e-20)


def test_the_model_leaves_as_it_came():
    model = helpers.language_model("llama")
    before = helpers.state(model)
    with exposed_bgemms(model):
        inside = model.config._attn_implementation
        with pytest.raises(KeyboardInterrupt), by_heads(model):
            assert model.config._attn_implementation != inside
            raise KeyboardInterrupt
        assert model.config._attn_implementation == inside
    helpers.assert_same_state(before, helpers.state(model))
