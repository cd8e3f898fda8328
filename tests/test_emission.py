"""Files of a target on disk: complete, of this plan only, and none where it cannot be run."""

import json

import helpers
import pytest

import inc_mp_plugin as mp
from inc_mp_plugin.emission import emit
from inc_mp_plugin.errors import SelectionError
from inc_mp_plugin.recipe import parse_recipe
from inc_mp_plugin.serving import Demands

RECIPE = parse_recipe(
    {
        "model": {"name_or_path": "a model", "dtype": "fp32"},
        "calibration": {"data": "nowhere.jsonl"},
        "tau": 1.0,
        "targets": ["optimum-habana"],
    },
    [],
    "here",
)


def planned(name, targets=(), **serving):
    model, batches = helpers.language_model(name), [{"input_ids": helpers.tokens(2)}]
    graph = mp.capture(model, batches[0])
    demanded = mp.demands(graph, targets, mp.Serving(**serving)) if targets else Demands()
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    sensitivity = mp.measure_sensitivity(model, graph, batches)
    return mp.solve(gains, sensitivity, tau=1.0, demands=demanded), graph


def test_a_refused_file_leaves_no_older_one_behind(tmp_path):
    path = tmp_path / "configs" / "cpu-qdq.json"
    path.parent.mkdir()
    path.write_text("of another plan")
    plan, graph = planned("llama")
    broken = mp.Graph(graph.ops, graph.groups, graph.unsupported, {})
    with pytest.raises(SelectionError, match="INC would not quantize lm_head"):
        emit(plan, broken, "cpu-qdq", tmp_path, RECIPE)
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("target", ["optimum-habana", "vllm-gaudi"])
def test_a_target_on_gaudi_gets_both_files_and_the_commands(tmp_path, target):
    plan, graph = planned("llama", [target])
    emit(plan, graph, target, tmp_path, RECIPE)
    quantize, measure = (
        json.loads((tmp_path / "configs" / f"{target}{end}.json").read_text()) for end in ("", "-measure")
    )
    assert (quantize["mode"], measure["mode"]) == ("QUANTIZE", "MEASURE")
    assert quantize["dump_stats_path"] == measure["dump_stats_path"]
    assert measure["allowlist"] == measure["blocklist"] == {"types": [], "names": []}
    script = (tmp_path / "configs" / f"{target}.sh").read_text()
    for word in ("a model", f"{target}.json", f"{target}-measure.json"):
        assert word in script


def test_a_plan_for_one_consumer_may_be_none_for_another(tmp_path):
    """In a plan of its own, k_proj of a Qwen3 may be in FP8; optimum-habana then wants the cache so."""
    plan, graph = planned("qwen3")
    with pytest.raises(SelectionError, match=r"inc-mp solve DIR 'targets=\[optimum-habana\]'"):
        emit(plan, graph, "optimum-habana", tmp_path, RECIPE)
    for serving in ({}, {"kv_cache": "fp8"}, {"reuse_cache": True}):
        plan, graph = planned("qwen3", ["optimum-habana"], **serving)
        assert emit(plan, graph, "optimum-habana", tmp_path, RECIPE).exists()


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("target", ["optimum-habana", "vllm-gaudi", "cpu-qdq"])
def test_experts_go_to_every_consumer(tmp_path, name, target):
    plan, graph = planned(name, [target])
    path = emit(plan, graph, target, tmp_path, RECIPE)
    assert path.exists()
    experts = [op for op in plan.quantized if ".experts." in op]
    assert bool(experts) == ((name, target) != ("qwen3_moe", "optimum-habana"))
