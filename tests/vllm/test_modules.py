"""Target vllm against the modules of vLLM's own instances, which `instances.py` writes down."""

import json
from collections import defaultdict
from pathlib import Path

import architectures
import helpers
import pytest
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.targets import VLLM
from inc_mp_plugin.targets.layout import Captured
from inc_mp_plugin.targets.rules import demands

DATA = Path(__file__).parent.parent / "data" / "vllm-modules.json"
RECORDED = json.loads(DATA.read_text())["models"]
# What vLLM would run in FP8, and no plan has there: a router, and experts with biases.
LEFT_ALONE = {
    "qwen3_moe": [f"model.layers.{number}.mlp.gate" for number in range(2)],
    "gpt_oss": [f"model.layers.{number}.mlp.experts.routed_experts" for number in range(2)],
}


def graph_of(name):
    model = transformers.AutoModelForCausalLM.from_config(architectures.config_of(name))
    return mp.capture(model, {"input_ids": helpers.tokens(1)})


@pytest.fixture(scope="module", params=architectures.ARCHITECTURES)
def graph(request):
    return request.param, graph_of(request.param)


def test_every_architecture_is_recorded():
    assert RECORDED.keys() == architectures.ARCHITECTURES.keys()


def test_every_module_is_there_and_nothing_else(graph):
    """Names and classes of all that a plan may have in FP8; vLLM keeps the ops without a module in BF16."""
    name, captured = graph[0], Captured.of(graph[1])
    linear = Captured(tuple(o.name for o in graph[1].ops if o.kind == "linear"), captured.modules)
    layout, recorded = VLLM.lay_out(linear, Serving()), RECORDED[name]
    left_alone = LEFT_ALONE.get(name, [])
    assert layout.trees == ({k: v for k, v in recorded["fp8"].items() if k not in left_alone},)
    assert {module for modules in layout.places.values() for module in modules} == layout.trees[0].keys()
    for op, why in layout.unplaced.items():
        module = op.replace(".mlp.gate", ".block_sparse_moe.gate") if name == "mixtral" else op
        block = f"{module.partition('.experts.')[0]}.experts.routed_experts"
        assert why
        assert module in recorded["base"] or module in left_alone or block in left_alone


def test_parts_of_a_module_are_those_that_vllm_packs(graph):
    name, captured = graph[0], graph[1]
    linear = Captured(tuple(op.name for op in captured.ops if op.kind == "linear"), captured.modules)
    parts = defaultdict(list)
    for op, (module,) in VLLM.lay_out(linear, Serving()).places.items():
        if not module.endswith(".routed_experts"):
            parts[module].append(op.rpartition(".")[2])
    packed = RECORDED[name]["packed"]
    for module, children in parts.items():
        child = module.rpartition(".")[2]
        assert sorted(children) == sorted(packed.get(child, [child]))
    fused = {module.rpartition(".")[2] for module, children in parts.items() if len(children) > 1}
    assert fused == {whole for whole, children in packed.items() if len(children) > 1}


def layer(ops, number=1):
    start = f"model.layers.{number}."
    return {op.removeprefix(start) for op in ops if op.startswith(start)}


def test_ties_by_hand():
    """Of DeepSeek's: the compressed attention, the dense or shared MLP, and all experts of a layer."""
    graph = graph_of("deepseek_v3")
    demanded = demands(graph, ["vllm"])
    experts = {f"mlp.experts.{i}.{role}_proj" for i in range(4) for role in ("gate", "up", "down")}
    attention = {"self_attn.q_a_proj", "self_attn.kv_a_proj_with_mqa"}
    shared = {f"mlp.shared_experts.{role}_proj" for role in ("gate", "up")}
    ties = [layer(tie.ops) for tie in demanded.ties]
    assert sorted(filter(None, ties), key=min) == [experts, shared, attention]
    assert {tie.why for tie in demanded.ties} == {
        f"vllm: it is one {name}" for name in ("fused_qkv_a_proj", "gate_up_proj", "routed_experts")
    }


def test_a_head_that_shares_its_weight_stays():
    model = helpers.language_model("llama", tie_word_embeddings=True)
    kept = demands(mp.capture(model, {"input_ids": helpers.tokens(1)}), ["vllm"]).kept
    assert kept.pop("lm_head") == "vllm: it shares the embedding's weight, which stays in the base format"
    assert set(kept.values()) == {"vllm: a checkpoint holds no product of attention in FP8"}
