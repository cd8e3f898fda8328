"""Exposed attention products: bit-identical to eager attention, and gone afterwards."""

from functools import partial

import capabilities
import helpers
import pytest
import torch
import transformers

from inc_mp_plugin.model import attention, attention_weights
from inc_mp_plugin.model.attention import attention_modules, expose_bgemms, exposed_bgemms

EXPOSED = [
    pytest.param(name, marks=capabilities.exposable_attention(name))
    for name in helpers.CONFIGS
    if name != "falcon"
]


def masked(samples=3, length=12):
    mask = torch.ones(samples, length, dtype=torch.long)
    mask[1, 8:] = 0  # padded on the right
    mask[2, :3] = 0  # and on the left
    return {"input_ids": helpers.tokens(samples, length), "attention_mask": mask}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", EXPOSED)
def test_logits_are_bit_identical_to_eager(name, dtype):
    model = helpers.language_model(name).to(dtype)
    model.set_attn_implementation("eager")
    batch = masked()
    expected = model(**batch).logits
    with exposed_bgemms(model) as exposed:
        logits = model(**batch).logits
    assert len(exposed) == 2
    assert torch.equal(logits, expected)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_encoder_is_bit_identical_to_eager(dtype):
    model = helpers.encoder().to(dtype)
    model.set_attn_implementation("eager")
    expected = model(**masked()).logits
    with exposed_bgemms(model):
        assert torch.equal(model(**masked()).logits, expected)


@torch.no_grad()
def test_generation_with_a_cache_is_the_same():
    model = helpers.language_model("llama")
    model.set_attn_implementation("eager")
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = model.generate(helpers.tokens(2), **options)
    with exposed_bgemms(model):
        assert torch.equal(model.generate(helpers.tokens(2), **options), expected)


@pytest.mark.parametrize("name", ["llama", "falcon"])
def test_the_model_leaves_as_it_came(name):
    model = helpers.language_model(name)
    before = helpers.state(model)
    with exposed_bgemms(model):
        pass
    helpers.assert_same_state(before, helpers.state(model))
    with pytest.raises(KeyboardInterrupt), exposed_bgemms(model):
        raise KeyboardInterrupt
    helpers.assert_same_state(before, helpers.state(model))


def test_exposing_twice_changes_nothing_more():
    model = helpers.language_model("llama")
    assert len(expose_bgemms(model)) == 2
    assert expose_bgemms(model) == ()
    with exposed_bgemms(model):
        pass
    assert hasattr(model.model.layers[0].self_attn, "matmul_qk")


def test_attention_that_computes_something_else_is_left_alone():
    """GPT-OSS has attention sinks; T5 adds a position bias."""
    config = transformers.GptOssConfig(
        hidden_size=64,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=96,
        num_local_experts=2,
    )
    assert attention_modules(transformers.AutoModelForCausalLM.from_config(config)) == {}


def test_a_model_that_loses_modules_meanwhile():
    """As a skeleton does when it is captured: what is left has its attention back."""
    model = helpers.language_model("llama")
    before = model.config._attn_implementation
    with exposed_bgemms(model):
        assert model.config._attn_implementation != before
        del model.model.layers[0].mlp
    assert model.config._attn_implementation == before
    assert not hasattr(model.model.layers[0].self_attn, "matmul_qk")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("at_once", [1, 2 * 3 * 12 * 12], ids=["a head", "two heads"])
@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_heads_in_groups_are_bit_identical_to_all_heads(monkeypatch, name, at_once, dtype):
    """Logits and gradients, of a batch with a mask, of grouped queries and of capped scores."""
    model = helpers.language_model(name).to(dtype)

    def outcome():
        model.zero_grad()
        logits = model(**masked()).logits
        logits.float().square().sum().backward()
        with torch.no_grad():
            assert torch.equal(model(**masked()).logits, logits)
        return [logits, *(p.grad for p in model.parameters() if p.grad is not None)]

    with exposed_bgemms(model):
        expected = outcome()
        monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", at_once)
        shapes, weigh = [], attention.nn.functional.softmax
        monkeypatch.setattr(
            attention.nn.functional, "softmax", lambda x, **keys: shapes.append(x.shape) or weigh(x, **keys)
        )
        got = outcome()
    assert all(map(torch.equal, got, expected))
    heads = model.config.num_attention_heads
    assert min(shape[1] for shape in shapes) == (1 if at_once == 1 else 2) < heads


def test_under_autocast_heads_in_groups_have_the_dtype_of_all_heads(monkeypatch):
    """Scores are in BF16 there, and weights in the dtype of the queries."""
    model = helpers.language_model("llama")

    def logits():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(**masked()).logits

    with exposed_bgemms(model):
        expected = logits()
        monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", 1)
        assert torch.equal(logits(), expected)


@pytest.mark.parametrize("shape", [(4, 5, 5), (2, 4, 5, 5), (2, 1, 5, 5), (5, 5)])
def test_a_mask_of_any_shape_and_one_that_is_learned(monkeypatch, shape):
    """The gradients of the queries, and of the mask, are those of all heads at once."""
    module = torch.nn.Module().eval()
    module.matmul_qk, module.matmul_av = attention.Matmul(), attention.Matmul()
    generator = torch.Generator().manual_seed(1)
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=generator).bfloat16()
    mask = torch.randn(shape, generator=generator).bfloat16()

    def gradients(*, learned):
        inputs = [query.clone().requires_grad_(), mask.clone().requires_grad_(learned)]
        output, _ = attention.bgemm_attention(module, inputs[0], key, value, inputs[1])
        return torch.autograd.grad(output.float().square().sum(), inputs[: 1 + learned])

    expected = [gradients(learned=learned) for learned in (False, True)]
    monkeypatch.setattr(attention_weights, "SCORES_AT_ONCE", 1)
    for learned, of_all_heads in enumerate(expected):
        assert all(map(torch.equal, gradients(learned=bool(learned)), of_all_heads))


def test_scores_are_kept_in_the_place_of_weights_in_fp32():
    """By hand: of 65 x 256 x 256 scores in BF16, the scores, not the FP32 weights that softmax keeps."""
    scores = torch.randn(1, 65, 256, 256, dtype=torch.bfloat16, requires_grad=True)
    kept, options = [], {"mask": None, "scaling": 0.1, "softcap": None, "dtype": torch.bfloat16}
    weigh = partial(attention._weigh, **options)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        attention_weights.attention_weights(scores, weigh, torch.bfloat16)
    assert [(x.dtype, x.numel()) for x in kept] == [(torch.bfloat16, 65 * 2**16)]
