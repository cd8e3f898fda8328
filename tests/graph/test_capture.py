"""Capture: ops, groups and what is unsupported, for the architectures people serve."""

import copy

import capabilities
import helpers
import pytest
import torch
import transformers
from torch import nn

from inc_mp_plugin.core.errors import CaptureError
from inc_mp_plugin.graph.capture import capture

LLAMA_LAYER = [
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
    + ["self_attn.matmul_qk", "self_attn.matmul_av"],
    ["self_attn.o_proj"],
    ["mlp.gate_proj", "mlp.up_proj"],
    ["mlp.down_proj"],
]
EXPERTS = [f"mlp.experts.{e}.{name}" for e in range(4) for name in ("gate_proj", "up_proj", "down_proj")]
MIXTURE_LAYER = [*LLAMA_LAYER[:2], EXPERTS]
LAYERS = {
    "llama": ("model.layers", LLAMA_LAYER),
    "qwen3": ("model.layers", LLAMA_LAYER),
    "mistral": ("model.layers", LLAMA_LAYER),
    "gemma3": ("model.layers", LLAMA_LAYER),
    "mixtral": ("model.layers", MIXTURE_LAYER),
    "qwen3_moe": ("model.layers", MIXTURE_LAYER),
    "phi3": (
        "model.layers",
        [
            ["self_attn.qkv_proj"],
            ["self_attn.matmul_qk", "self_attn.matmul_av"],
            ["self_attn.o_proj"],
            ["mlp.gate_up_proj"],
            ["mlp.down_proj"],
        ],
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        [
            ["attention.query_key_value", "attention.matmul_qk", "attention.matmul_av"]
            + ["attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
        ],
    ),
    "opt": (
        "model.decoder.layers",
        [
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]
            + ["self_attn.matmul_qk", "self_attn.matmul_av"],
            ["self_attn.out_proj"],
            ["fc1"],
            ["fc2"],
        ],
    ),
    "falcon": (
        "transformer.h",
        [
            ["self_attention.query_key_value", "self_attention.dense"]
            + ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
        ],
    ),
}


@pytest.mark.parametrize("name", helpers.mostly_slow(LAYERS, "llama", "phi3", "gpt_neox"))
def test_groups_of_a_layer(name):
    model = helpers.language_model(name)
    graph = capture(model, {"input_ids": helpers.tokens(2)})
    head = next(n for n, m in model.named_modules() if m is model.get_output_embeddings())
    prefix, layer = LAYERS[name]
    expected = [{f"{prefix}.{i}.{op}" for op in group} for i in range(2) for group in layer]
    assert [set(group) for group in graph.groups] == [*expected, {head}]
    assert [op.name for op in graph.ops if op.name not in sum(graph.groups, ())] == []


def test_deepseek_v3_has_dense_and_shared_expert_groups():
    graph = capture(helpers.language_model("deepseek_v3"), {"input_ids": helpers.tokens(2)})
    names = [tuple(name.split(".", 3)[-1] for name in group) for group in graph.groups]
    latent = tuple(
        f"self_attn.{op}"
        for op in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "matmul_qk", "matmul_av")
    )
    dense = [("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",)]
    shared = tuple(f"mlp.shared_experts.{op}" for op in ("gate_proj", "up_proj", "down_proj"))
    output = ("self_attn.o_proj",)
    assert names == [latent, output, *dense, latent, output, (*EXPERTS, *shared), ("lm_head",)]


@pytest.mark.parametrize(
    ("name", "module", "reason"),
    [
        ("gpt2", "transformer.h.0.mlp.c_fc", "stands in a Conv1D"),
        pytest.param(
            "mixtral",
            "model.layers.1.mlp.gate",
            "router: it decides which experts run",
            marks=capabilities.fused_experts,
        ),
        ("deepseek_v3", "model.layers.1.mlp.gate", "router: it decides which experts run"),
        ("falcon", "transformer.h.0.self_attention", "fused attention kernel"),
    ],
)
def test_what_cannot_be_quantized_is_listed_with_its_reason(name, module, reason):
    graph = capture(helpers.language_model(name), {"input_ids": helpers.tokens(2)})
    reasons = {product.name: product.reason for product in graph.unsupported}
    assert reason in reasons[module]
    assert module not in graph.by_name


@capabilities.exposable_attention("gpt2")
def test_gpt2_keeps_its_products_and_head():
    graph = capture(helpers.language_model("gpt2"), {"input_ids": helpers.tokens(2)})
    kinds = {op.name.split(".")[-1]: op.kind for op in graph.ops}
    assert kinds == {"matmul_qk": "bgemm", "matmul_av": "bgemm", "lm_head": "linear"}
    assert graph.by_name["lm_head"].tied


@capabilities.exposable_attention("bert")
def test_encoder_groups():
    batch = {"input_ids": helpers.tokens(2), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    graph = capture(helpers.encoder(), batch)
    assert [len(group) for group in graph.groups] == [5, 1, 1, 1, 5, 1, 1, 1, 1, 1]
    assert graph.groups[-2:] == (("bert.pooler.dense",), ("classifier",))


def test_residual_cnn():
    graph = capture(helpers.ResidualCNN(), torch.randn(2, 3, 8, 8))
    assert graph.groups == (("first",), ("second",), ("down",), ("head",))
    assert [op.kind for op in graph.ops] == ["conv2d", "conv2d", "conv2d", "linear"]
    macs = {op.name: op.macs for op in graph.ops}
    # output elements per sample x input channels of a group x kernel size, by hand
    assert macs == {
        "first": 8 * 8 * 8 * 3 * 9,
        "second": 8 * 8 * 8 * 2 * 9,
        "down": 12 * 3 * 3 * 8 * 9,
        "head": 12 * 5,
    }


def test_hand_written_module_and_calls():
    graph = capture(helpers.HandWritten(), torch.randn(3, 4, 6))
    assert graph.groups == (("left", "right", "product"), ("again",))
    again = graph.by_name["again"]
    assert (again.calls, again.macs, again.weight_elements) == (2, 2 * 4 * 6 * 6, 36)
    assert graph.by_name["product"].macs == 4 * 4 * 6
    assert [product.kind for product in graph.unsupported] == ["matmul"]  # the functional one


def test_llama_numbers_by_hand():
    graph = capture(helpers.language_model("llama"), {"input_ids": helpers.tokens(3, 10)})
    ops = graph.by_name
    assert ops["model.layers.0.self_attn.k_proj"].macs == 10 * 64 * 32
    assert ops["model.layers.0.self_attn.matmul_qk"].macs == 4 * 10 * 10 * 16
    assert ops["model.layers.0.mlp.down_proj"].weight_elements == 96 * 64
    assert not ops["lm_head"].tied


def test_a_tied_head_is_marked():
    model = helpers.language_model("llama", tie_word_embeddings=True)
    assert capture(model, {"input_ids": helpers.tokens(2)}).by_name["lm_head"].tied


def test_one_module_under_two_names_is_refused_by_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.second = self.first
            self.other = nn.Linear(4, 4)

        def forward(self, x):
            return self.other(self.first(x) + self.second(x))

    graph = capture(Twice(), torch.randn(2, 4))
    assert [op.name for op in graph.ops] == ["other"]
    assert all("several names" in product.reason for product in graph.unsupported)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mixtral"])
def test_the_model_is_left_alone(name):
    model = helpers.language_model(name)
    model.train()
    before = helpers.state(model)
    capture(model, {"input_ids": helpers.tokens(2)})
    helpers.assert_same_state(before, helpers.state(model))


def test_weights_are_not_needed():
    config = transformers.LlamaConfig(num_hidden_layers=1, hidden_size=8192, vocab_size=100_000)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    assert len(capture(model, {"input_ids": helpers.tokens(1)}).ops) == 10


def test_a_model_that_cannot_be_traced():
    class DataDependent(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            y = self.linear(x)
            return y if bool(y.sum() > 0) else x

    with pytest.raises(CaptureError, match="cannot trace DataDependent"):
        capture(DataDependent(), torch.randn(2, 4))


def test_nothing_to_quantize():
    with pytest.raises(CaptureError, match="nothing in Sequential"):
        capture(nn.Sequential(nn.ReLU()), torch.randn(2, 4))


def test_copies_are_independent():
    model = helpers.language_model("llama")
    graph = capture(copy.deepcopy(model), {"input_ids": helpers.tokens(2)})
    assert graph == capture(model, {"input_ids": helpers.tokens(2)})
