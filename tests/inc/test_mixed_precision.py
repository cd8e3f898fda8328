"""BF16 beside FP32, through INC's own mixed precision."""

import copy
from dataclasses import replace

import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError, SelectionError
from inc_mp_plugin.inc.config import to_inc_config
from inc_mp_plugin.inc.mixed_precision import half_precision_switch, lower_precision, mixed_precision_config

BATCH = {"input_ids": helpers.tokens(3)}


def wrapped(model):
    return {n for n, m in model.named_modules() if type(m).__name__ == "HalfPrecisionModuleWrapper"}


def with_ops(plan, quantized):
    return replace(plan, formats={op: "bf16" if op in quantized else "fp32" for op in plan.formats})


def planned(quantized=None, **changes):
    """A model and a plan that runs some linear layers in BF16."""
    model = helpers.language_model("llama", **changes)
    graph = mp.capture(model, BATCH)
    linear = [op.name for op in graph.ops if op.kind == "linear"]
    gains = mp.memory_gains(graph, ("fp32", "bf16"))
    plan = mp.solve(gains, mp.measure_sensitivity(model, graph, [BATCH]), tau=10.0)
    chosen = linear if quantized is None else quantized
    return (
        model,
        graph,
        replace(plan, formats={op: "bf16" if op in chosen else "fp32" for op in plan.formats}),
    )


def by_inc(model, plan, graph):
    """What INC's own quantize makes of our configuration."""
    from neural_compressor.torch.quantization import quantize

    config = to_inc_config(plan, "cpu-bf16", graph)
    return quantize(copy.deepcopy(model), config, run_fn=lambda model: None)


@torch.no_grad()
@pytest.mark.parametrize("chosen", [None, ["model.layers.1.mlp.up_proj"], []], ids=["all", "one", "none"])
def test_inc_wraps_exactly_the_plan(chosen):
    model, graph, plan = planned(chosen)
    converted = by_inc(model, plan, graph)
    assert wrapped(converted) == set(plan.quantized)


@torch.no_grad()
def test_casting_weights_once_changes_no_value():
    model, graph, plan = planned()
    expected = by_inc(model, plan, graph)(**BATCH).logits
    ours = lower_precision(copy.deepcopy(model), to_inc_config(plan, "cpu-bf16", graph))
    assert torch.equal(ours(**BATCH).logits, expected)
    layer = ours.get_submodule(plan.quantized[0])
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert not torch.equal(expected, model(**BATCH).logits)


@torch.no_grad()
def test_the_switch_gives_incs_values_and_leaves_the_model_as_it_came():
    model, graph, plan = planned()
    before, original = helpers.state(model), copy.deepcopy(model)
    switch = half_precision_switch(model, {op: "bf16" for op in plan.quantized})
    helpers.assert_same_state(before, helpers.state(model))
    for chosen in (plan.quantized[:3], plan.quantized[5:6], plan.quantized):
        switch.select(dict.fromkeys(chosen, "bf16"))
        expected = by_inc(original, with_ops(plan, chosen), graph)(**BATCH).logits
        assert torch.equal(model(**BATCH).logits, expected)
    switch.select({})
    helpers.assert_same_state(before, helpers.state(model))


@torch.no_grad()
def test_apply_lowers_a_tied_head_and_not_the_embedding():
    model, _, plan = planned(["lm_head"], tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    mp.apply(model, plan, [])
    assert wrapped(model) == {"lm_head"}
    assert model.model.embed_tokens.weight.dtype == torch.float32


def test_two_formats_in_one_configuration():
    modules = {"a": "Linear", "b": "Linear", "c": "Linear", "a.b": "Linear", "norm": "LayerNorm"}
    config = mixed_precision_config("fp32", {"a": "bf16", "b": "fp16"}, modules)
    assert config == {
        "mixed_precision": {
            "global": {"dtype": "fp32"},
            "local": {"^a$": {"dtype": "bf16"}, "^b$": {"dtype": "fp16"}},
        }
    }


def test_what_inc_cannot_do_is_refused():
    with pytest.raises(InputError, match="mixes bf16, fp8_e4m3; target cpu-bf16 runs bf16 and fp16 beside"):
        mixed_precision_config("bf16", {"a": "fp8_e4m3"})
    with pytest.raises(InputError, match="mixes bf16, fp16; target cpu-bf16"):
        mixed_precision_config("bf16", {"a": "fp16"})
    with pytest.raises(SelectionError, match=r"INC would not quantize qk \(class Matmul\)"):
        mixed_precision_config("fp32", {"qk": "bf16"}, {"qk": "Matmul"})
