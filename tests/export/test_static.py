"""Checkpoints of the scheme "static", against INC's own converted modules."""

import checkpoints
import helpers
import pytest
import torch

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.export.scales import static_scales
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.convert import switchable
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.targets import CPU_QDQ
from inc_mp_plugin.targets.layout import Captured

BATCHES = [{"input_ids": helpers.tokens(3, seed=seed)} for seed in range(2)]
ALONE = ("o_proj", "down_proj", "lm_head")


def converted(model, graph, base, method):
    """INC's own modules, {op: module}; the model itself goes with them."""
    formats = {op.name: "fp8_e4m3" for op in graph.ops}
    config = config_of(base, formats, CPU_QDQ, Captured.of(graph), scale_method=method)
    switch = switchable(model, config, "fp8_e4m3", BATCHES)
    return {op: patched for op, _, patched in switch.pairs()}


@pytest.mark.parametrize("method", ["maxabs_arbitrary", "maxabs_pow2"])
@pytest.mark.parametrize("base", ["fp32", "bf16"])
def test_weights_and_scales_are_those_of_inc(tmp_path, base, method):
    """Bit for bit where an op is alone; in a fused module by the largest of INC's scales."""
    dtype = torch.float32 if base == "fp32" else torch.bfloat16
    model = helpers.language_model("llama").to(dtype)
    layer = model.model.layers[0]
    layer.self_attn.k_proj.weight.data.mul_(3)
    layer.mlp.gate_proj.weight.data.mul_(0.4)
    source = checkpoints.saved(model, tmp_path / "source")
    captured, graph = checkpoints.captured_linear(model), mp.capture(model, BATCHES[0])
    seen = observe_maxabs(model, graph, BATCHES, None)
    inputs = {op: float(seen[op, 0]) for op in captured.ops}
    places = checkpoints.exported(
        model,
        source,
        captured.ops,
        tmp_path / "out",
        captured=captured,
        scales=lambda places: static_scales(
            source, places, inputs, Scales(method, "cpu"), base=base, captured=captured
        ),
    )
    assert places.keys() == set(captured.ops)
    before, after = checkpoints.tensors(tmp_path / "source"), checkpoints.tensors(tmp_path / "out")
    modules = converted(model, graph, base, method)
    group_of = {op: [op] for op in captured.ops}
    for number in range(2):
        for parent, names in (("self_attn", "qkv"), ("mlp", ("gate", "up"))):
            group = [f"model.layers.{number}.{parent}.{name}_proj" for name in names]
            group_of |= dict.fromkeys(group, group)
    for op, group in group_of.items():
        assert (len(group) == 1) == op.endswith(ALONE)
        largest = max((modules[member] for member in group), key=lambda module: module.dequant_weights.scale)
        assert after[f"{op}.weight_scale"].item() == float(largest.dequant_weights.scale)
        own = max(float(modules[member].quant_input.scale) for member in group)
        assert after[f"{op}.input_scale"].item() == own
        if len(group) == 1:
            codes = modules[op].weight.T
        else:
            (cast, _) = largest._mod_extra_config.params["weight"]
            divided = before[f"{op}.weight"].float() / torch.tensor(cast.scale)
            codes = divided.clamp(-448, 448).to(torch.float8_e4m3fn)
        assert checkpoints.same(after[f"{op}.weight"], codes.detach())
    spread = {modules[op].dequant_weights.scale for op in group_of[layer_name("self_attn.q_proj")]}
    assert len(spread) > 1  # the groups have different scales in INC


def layer_name(rest):
    return f"model.layers.0.{rest}"


def test_a_scale_per_output_channel_is_refused(tmp_path):
    model = helpers.language_model("llama")
    source = checkpoints.saved(model, tmp_path / "source")
    method = Scales("act_maxabs_pow2_weights_pcs_maxabs_pow2", "cpu")
    with pytest.raises(InputError, match="give --scheme dynamic"):
        static_scales(source, {}, {}, method, base="fp32", captured=checkpoints.captured_linear(model))


def test_its_config_says_that_scales_are_in_the_file(tmp_path):
    model = helpers.language_model("llama")
    source = checkpoints.saved(model, tmp_path / "source")
    captured = checkpoints.captured_linear(model)
    checkpoints.exported(
        model,
        source,
        [layer_name("mlp.down_proj")],
        tmp_path / "out",
        captured=captured,
        scales=lambda places: static_scales(
            source,
            places,
            dict.fromkeys(places, 2.0),
            Scales("maxabs_pow2", "cpu"),
            base="fp32",
            captured=captured,
        ),
    )
    (group,) = checkpoints.config(tmp_path / "out")["quantization_config"]["config_groups"].values()
    assert group["weights"]["strategy"] == "tensor"
    activations = group["input_activations"]
    assert (activations["strategy"], activations["dynamic"]) == ("tensor", False)
    scale = checkpoints.tensors(tmp_path / "out")[layer_name("mlp.down_proj.input_scale")]
    assert scale.tolist() == [2.0**-5]  # 2 / (448 / 4), up to a power of two
