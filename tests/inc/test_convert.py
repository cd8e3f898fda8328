"""INC's own conversion: apply, and the switch against INC's convert."""

import copy
import gc
import random
import tempfile
import weakref
from dataclasses import replace

import capabilities
import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.config import config_of, to_inc_config
from inc_mp_plugin.inc.convert import apply, quantize, switchable
from inc_mp_plugin.model.attention import expose_bgemms, exposed_bgemms
from inc_mp_plugin.model.experts import exposed_experts
from inc_mp_plugin.targets import CPU_QDQ


def batches(count=2):
    return [{"input_ids": helpers.tokens(3, seed=seed)} for seed in range(count)]


def patched(model):
    return {n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")}


def planned(name="llama", dtype=torch.float32, **changes):
    """A model, its graph and a plan that quantizes everything."""
    model = helpers.language_model(name, **changes).to(dtype)
    graph = mp.capture(model, batches()[0])
    base = "fp32" if dtype == torch.float32 else "bf16"
    gains = mp.mac_gains(graph, (base, "fp8_e4m3"), "h100")
    plan = mp.solve(gains, mp.measure_sensitivity(model, graph, batches()), tau=10.0)
    assert set(plan.quantized) == set(graph.by_name)
    return model, graph, plan


def with_ops(plan, quantized):
    return replace(plan, formats={op: "fp8_e4m3" if op in quantized else plan.base for op in plan.formats})


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "name", helpers.mostly_slow(["llama", "falcon", "gpt2", "mixtral"], "llama", "mixtral")
)
def test_apply_quantizes_exactly_the_plan(name, dtype):
    model, graph, plan = planned(name, dtype)
    chosen = set(list(graph.by_name)[::2])
    before = model(**batches()[0]).logits
    after = apply(model, with_ops(plan, chosen), batches())
    assert patched(after) == chosen
    logits = after(**batches()[0]).logits
    assert logits.dtype == before.dtype
    assert not torch.equal(logits, before)
    assert torch.nn.functional.cosine_similarity(logits.flatten(), before.flatten(), dim=0) > 0.99


def test_apply_of_nothing_and_apply_without_batches():
    model, _, plan = planned()
    before = helpers.state(model)
    apply(model, with_ops(plan, set()), [])
    helpers.assert_same_state(before, helpers.state(model))
    with pytest.raises(InputError, match="no calibration batch"):
        apply(model, plan, [])
    assert patched(model) == set()
    assert patched(apply(model, plan, batches())) == set(plan.quantized)


def test_attention_is_left_alone_if_the_plan_does():
    model, graph, plan = planned()
    linear = {op.name for op in graph.ops if op.kind == "linear"}
    apply(model, with_ops(plan, linear), batches())
    assert patched(model) == linear
    assert not hasattr(model.model.layers[0].self_attn, "matmul_qk")


def test_apply_to_another_model():
    _, _, plan = planned()
    with pytest.raises(InputError, match="is not a module of this model"):
        apply(helpers.encoder(), plan, batches())


@capabilities.fused_experts
@torch.no_grad()
@pytest.mark.parametrize("name", helpers.mostly_slow(["gpt_oss", "llama4_text"], "gpt_oss"))
def test_experts_of_transposed_weights_with_biases(name):
    """Of zeros an FP8 linear module makes its bias, which INC leaves as it is; GPT-OSS has some."""
    model, data = helpers.mixture(name), [{"input_ids": helpers.tokens(8, 24)}]
    graph = mp.capture(model, data[0])
    with torch.enable_grad():
        seen = mp.measure_sensitivity(model, graph, data)
    experts = {op.name for op in graph.ops if ".experts." in op.name}
    plan = with_ops(mp.solve(mp.mac_gains(graph, ("fp32", "fp8_e4m3"), "h100"), seen, tau=10.0), experts)
    before = model(**data[0]).logits
    with exposed_experts(model):
        biases = {op: model.get_submodule(op).bias for op in experts}
    after = apply(model, plan, data)
    assert patched(after) == experts
    cosine = torch.nn.functional.cosine_similarity(after(**data[0]).logits.flatten(), before.flatten(), dim=0)
    assert 0.95 < cosine < 1 - 1e-6
    assert {bias is not None for bias in biases.values()} == {name == "gpt_oss"}
    for op, bias in biases.items():
        inputs = 96 if op.endswith("down_proj") and name == "llama4_text" else 32 if "down" in op else 64
        expected = torch.zeros(()) if bias is None else bias
        assert (after.get_submodule(op)(torch.zeros(1, inputs)) == expected).all()


@torch.no_grad()
def test_switch_is_bit_equal_to_incs_own_convert():
    model, graph, plan = planned()
    original = copy.deepcopy(model)
    switch = switchable(model, to_inc_config(plan, "cpu-qdq", graph), "fp8_e4m3", batches())
    assert set(switch.ops) == set(graph.by_name)
    draw = random.Random(0)
    for _ in range(4):
        chosen = set(draw.sample(switch.ops, draw.randint(1, len(switch.ops))))
        fresh = copy.deepcopy(original)
        config = to_inc_config(with_ops(plan, chosen), "cpu-qdq", graph)
        expose_bgemms(fresh)
        expected = quantize(fresh, config, batches())(**batches()[1]).logits
        switch.select(dict.fromkeys(chosen, "fp8_e4m3"))
        assert patched(switch.model) == chosen
        assert torch.equal(switch.model(**batches()[1]).logits, expected)
    switch.select({})
    with exposed_bgemms(original):
        assert torch.equal(switch.model(**batches()[1]).logits, original(**batches()[1]).logits)
    with pytest.raises(InputError, match="'nowhere' was not converted to fp8_e4m3"):
        switch.select({"nowhere": "fp8_e4m3"})


@torch.no_grad()
def test_products_are_quantized_as_by_hand():
    """INC's matmul with our scale: bit-equal to rounding both inputs to FP8 and multiplying."""
    model, graph, plan = planned()
    name = "model.layers.0.self_attn.matmul_qk"
    apply(model, with_ops(plan, {name}), batches())
    product = model.get_submodule(name)
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(1, 2, 4, 4, generator=generator) for _ in range(2))

    def rounded(x, scale):
        scale = torch.as_tensor(scale, dtype=torch.float32)
        return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale

    scales = [1 / float(q.scale_inv) for q in (product.quant_input_0, product.quant_input_1)]
    output = product(a, b)
    expected = rounded(a, scales[0]) @ rounded(b, scales[1])
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    model, _, plan = planned()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # other tests write to the common one
    apply(model, plan, batches())
    assert list(tmp_path.iterdir()) == []
    watched = weakref.ref(model)
    del model
    gc.collect()
    assert watched() is None  # INC's globals do not keep it alive


@torch.no_grad()
def test_a_switch_of_an_fp16_model_is_bf16_in_every_choice():
    """INC makes BF16 of FP16, in the modules that it has, and the others must go with them."""
    model = helpers.language_model("llama").half()
    names = [n for n, m in model.named_modules() if type(m).__name__ == "Linear"]
    plain = helpers.language_model("llama").bfloat16()(**batches()[0]).logits
    config = config_of("fp16", dict.fromkeys(names, "fp8_e4m3"), CPU_QDQ)
    switch = switchable(model, config, "fp8_e4m3", batches())
    for chosen in ([], names[::2], names):
        switch.select(dict.fromkeys(chosen, "fp8_e4m3"))
        logits = switch.model(**batches()[0]).logits
        assert logits.dtype == torch.bfloat16
        assert torch.nn.functional.cosine_similarity(logits.flatten(), plain.flatten(), dim=0) > 0.98
