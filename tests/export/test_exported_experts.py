"""Experts in checkpoints: by their own names, stacked in one tensor, and as vLLM ties them."""

import checkpoints
import helpers
import pytest
import torch

from inc_mp_plugin.export.groups import groups_of, input_groups, unplaced, weight_groups
from inc_mp_plugin.export.places import places_of
from inc_mp_plugin.model.expert_stacks import order_of
from inc_mp_plugin.model.experts import exposed_experts
from inc_mp_plugin.model.modules import module_of

pytestmark = helpers.since_5


def weights_of(model, ops):
    """The weights of ops in the model itself, {op: weight}."""
    with exposed_experts(model):
        return {op: module_of(model, op).weight.detach().clone() for op in ops}


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "llama4_text", "deepseek_v3"])
def test_every_expert_has_the_weight_that_the_model_has(tmp_path, name):
    """Linear ones under their names in files, stacks as linear ones, decoded to about the model's."""
    model = helpers.mixture(name)
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    experts = [op for op in captured.ops if ".experts." in op]
    places = checkpoints.exported(model, source, experts, tmp_path / "out", captured=captured)
    assert len(experts) % 12 == 0 != len(experts)
    after = checkpoints.tensors(tmp_path / "out")
    for op, weight in weights_of(model, experts).items():
        module = places[op].module
        codes, scale = after[f"{module}.weight"], after[f"{module}.weight_scale"]
        assert codes.dtype == torch.float8_e4m3fn
        assert (codes.float() * scale - weight).abs().amax() <= weight.abs().amax() / 16
    assert not [key for key in after if key.endswith(("gate_up_proj", "experts.down_proj"))]


def test_a_stack_that_stays_is_named_expert_by_expert(tmp_path):
    model = helpers.mixture("llama4_text")
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    lowered = [op for op in captured.ops if "self_attn" in op]
    checkpoints.exported(model, source, lowered, tmp_path / "out", captured=captured)
    ignored = set(checkpoints.config(tmp_path / "out")["quantization_config"]["ignore"])
    assert {op for op in captured.ops if op not in lowered} <= ignored
    assert ignored.isdisjoint(lowered)
    for name, tensor in checkpoints.tensors(tmp_path / "source").items():
        if ".experts." in name:
            assert checkpoints.same(checkpoints.tensors(tmp_path / "out")[name], tensor)


def test_a_router_stays_and_is_named(tmp_path):
    model = helpers.mixture("mixtral")
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    checkpoints.exported(model, source, ["lm_head"], tmp_path / "out", captured=captured)
    ignored = checkpoints.config(tmp_path / "out")["quantization_config"]["ignore"]
    assert "model.layers.0.block_sparse_moe.gate" in ignored
    assert "model.layers.0.block_sparse_moe.experts.0.w1" in ignored
    assert "lm_head" not in ignored
    assert "model.embed_tokens" not in ignored


@pytest.mark.parametrize(
    ("name", "why"), [("gpt_oss", "have biases"), ("granitemoe", "in a form that is not known here")]
)
def test_experts_that_no_server_would_load_have_no_place(tmp_path, name, why):
    model = helpers.mixture(name)
    source = checkpoints.saved(model, tmp_path)
    captured = checkpoints.captured_linear(model)
    _, reasons = places_of(captured.ops, source, lambda module: order_of(model.get_submodule(module)))
    experts = [op for op in captured.ops if ".experts." in op]
    assert experts
    assert all(why in reasons[op] for op in experts)


def test_groups_of_a_mixture():
    """By hand: q, k, v; all experts of a block; one scale per gate and up, inputs of a block alike."""
    captured = checkpoints.captured_linear(helpers.mixture("mixtral"))
    attention = tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
    block = [
        f"model.layers.0.mlp.experts.{i}.{role}_proj" for i in range(4) for role in ("gate", "up", "down")
    ]
    groups = {frozenset(group.members): group for group in groups_of(captured)}
    assert len(groups) == 4
    assert groups[frozenset(attention)].name == "model.layers.0.self_attn.qkv_proj"
    experts = groups[frozenset(block)]
    fault = experts.fault(block[1:])
    assert "11 of its 12 parts are in FP8" in fault
    assert block[0] in fault
    assert not experts.fault(block)
    assert not experts.fault([])
    pairs = {frozenset(group) for group in weight_groups(captured)}
    assert {frozenset(block[:2]), frozenset(attention)} <= pairs
    assert len(pairs) == 2 + 2 * 4
    inputs = {frozenset(group) for group in input_groups(captured)}
    downs = {name for name in block if "down" in name}
    assert {frozenset(attention), frozenset(downs), frozenset(block) - downs} <= inputs
    assert len(inputs) == 6
    assert not unplaced(captured)


def test_ops_of_an_unknown_kind_have_no_module():
    assert (
        "not known"
        in unplaced(checkpoints.captured_linear(helpers.language_model("opt")))["model.decoder.layers.0.fc1"]
    )
