"""Files of a target on disk: complete, of this plan only, and none where it cannot be run."""

import json

import helpers
import pytest

import inc_mp_plugin as mp
from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import SelectionError
from inc_mp_plugin.pipeline.recipe import parse_recipe
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.stages.files import clear_files, title_of, write_files


def recipe_of(model="a model", *overrides):
    content = {
        "model": {"name_or_path": model, "dtype": "fp32"},
        "calibration": {"data": "nowhere.jsonl"},
        "tau": 1.0,
        "targets": ["optimum-habana"],
    }
    return parse_recipe(content, list(overrides), "here")


RECIPE = recipe_of()


def emit(plan, graph, target, folder, recipe):
    return write_files(job_of(recipe), plan, graph, target, title=title_of(plan), out=folder)


FLASH = {"attention": "flash"}


def planned(name, targets=(), gain_fraction=None, **serving):
    model, batches = helpers.language_model(name), [{"input_ids": helpers.tokens(2)}]
    graph = mp.capture(model, batches[0])
    demanded = mp.demands(graph, targets, mp.Serving(**serving)) if targets else Demands()
    gains = mp.memory_gains(graph, ("fp32", "fp8_e4m3"))
    sensitivity = mp.measure_sensitivity(model, graph, batches)
    tau = 1.0 if gain_fraction is None else None
    return mp.solve(gains, sensitivity, tau, gain_fraction=gain_fraction, demands=demanded), graph


@pytest.fixture(scope="module")
def plans():
    """A plan for each consumer on Gaudi, with the graph."""
    return {
        "vllm-gaudi": planned("llama", ["vllm-gaudi"]),
        "optimum-habana": planned("llama", ["optimum-habana"], **FLASH),
    }


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
    lowered = f"plan: {len(plan.quantized)} of {len(plan.formats)} ops in FP8, tau 1, objective memory"
    for word in ("a model", f"{target}.json", f"{target}-measure.json", lowered):
        assert word in script


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        ("meta-llama/Llama-3.1-8B", "Llama-3.1-8B"),
        ("models/my model; rm -rf $HOME/", "my-model-rm--rf-HOME"),
        ("models/été (v2)", "-t-v2-"),
        (".", None),
        ("..", None),
        ("/", "model"),
    ],
)
@pytest.mark.parametrize(
    ("target", "end"), [("vllm-gaudi", "vllm-gaudi"), ("optimum-habana", "optimum-habana-flash")]
)
def test_every_model_measures_into_a_folder_of_its_own(
    tmp_path, monkeypatch, plans, model, folder, target, end
):
    """The name of a model that is here is that of its folder, wherever one stands; nothing needs quoting."""
    (tmp_path / "here" / "below").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here" / "below")
    folder = folder or {".": "below", "..": "here"}[model]
    plan, graph = plans[target]
    emit(plan, graph, target, tmp_path, recipe_of(model))
    stats = f"./hqt_output/{folder}/{end}"
    for name in (f"{target}.json", f"{target}-measure.json"):
        config = json.loads((tmp_path / "configs" / name).read_text())
        assert config["dump_stats_path"] == f"{stats}/measure"
    assert f"stats={stats}\n" in (tmp_path / "configs" / f"{target}.sh").read_text()


@pytest.mark.parametrize(
    ("overrides", "length"),
    [([], 1024 + 256), (["request={prompt_tokens: 100, output_tokens: 11, batch_size: 3}"], 111)],
    ids=["none", "given"],
)
def test_the_commands_are_for_the_request_of_the_recipe(tmp_path, plans, overrides, length):
    plan, graph = plans["vllm-gaudi"]
    emit(plan, graph, "vllm-gaudi", tmp_path, recipe_of("a model", *overrides))
    assert f"LENGTH:-{length}" in (tmp_path / "configs" / "vllm-gaudi.sh").read_text()


def test_a_plan_that_was_asked_for_a_gain_names_no_tau(tmp_path):
    plan, graph = planned("llama", ["optimum-habana"], gain_fraction=0.5)
    emit(plan, graph, "optimum-habana", tmp_path, RECIPE)
    assert (
        "not held to a threshold, objective memory"
        in (tmp_path / "configs" / "optimum-habana.sh").read_text()
    )


def test_only_generated_files_are_removed(tmp_path, caplog):
    caplog.set_level("INFO", "inc_mp_plugin")
    folder = tmp_path / "configs"
    folder.mkdir()
    own = {"mine.json", "vllm-gaudi.json.bak", "optimum-habana-old.sh", "vllm-gaudi-after.json"}
    generated = {"cpu-qdq.json", "cpu-bf16.json"}
    generated |= {
        f"{target}{end}"
        for target in ("vllm-gaudi", "optimum-habana")
        for end in (".json", "-measure.json", ".sh")
    }
    for name in own | generated:
        (folder / name).write_text("")
    clear_files(tmp_path, ["vllm-gaudi"])
    assert {path.name for path in folder.iterdir()} == own
    (said,) = caplog.messages
    assert {name for name in generated if name in said} == {n for n in generated if "vllm" not in n}
    clear_files(tmp_path)
    clear_files(tmp_path / "nowhere")
    assert caplog.messages == [said]


def test_a_plan_for_one_consumer_may_be_none_for_another(tmp_path):
    """In a plan of its own, k_proj of a Qwen3 may be in FP8; optimum-habana then wants the cache so."""
    plan, graph = planned("qwen3")
    with pytest.raises(SelectionError, match="no optimum-habana file was made"):
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
