"""Folders of mp.tune and of INC scripts, in the hands of the commands."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import helpers
import pytest
from helpers import call, read

import inc_mp_plugin as mp
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.pipeline.deprecated import timing_from
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.lock import locked

BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(3)]
SCALES = mp.Scales("maxabs_pow2", "cpu")


@pytest.fixture(scope="module")
def model():
    return helpers.language_model("llama")


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """What mp.tune leaves, some ops kept out."""
    out = tmp_path_factory.mktemp("memory")
    names = [op.name for op in mp.capture(model, BATCHES[0]).ops if "lm_head" not in op.name]
    mp.tune(model, BATCHES, tau=0.0005, noise="measured", scales=SCALES, allowed=names, out=out)
    return out


def told(result):
    return " ".join(result.output.split())


def test_solve_finds_the_plan_that_python_finds(model, folder):
    assert call("solve", folder, "tau=0.0002").exit_code == 0
    graph = mp.capture(model, BATCHES[0])
    seen = mp.measure_sensitivity(
        model, graph, BATCHES, yardstick="both", scales=SCALES, formats=("fp8_e4m3",)
    )
    losses = mp.LossModel(seen.of([op for op in seen.ops if "lm_head" not in op]), "measured")
    plan = mp.solve(mp.memory_gains(graph, ("fp32", "fp8_e4m3")), losses, tau=0.0002)
    stored = read(folder, "plan.json")
    assert stored["formats"] == dict(plan.formats)
    assert stored["predicted"]["loss_mse"] == plan.loss_mse
    assert 0 < len(plan.quantized) < len(losses.ops)
    assert stored["noise"] == "measured"


def test_a_noise_that_needs_no_measurement(folder):
    assert call("solve", folder, "tau=0.0002", "noise=uniform", "gain_fraction=0.3").exit_code == 0
    assert read(folder, "plan.json")["formats"]["lm_head"] == "fp32"


def test_a_server_that_is_the_first_target(model, tmp_path):
    """Its rounding is priced, and hooks measure the plan with it; its folder solves again."""
    heldout = {"data": [{"input_ids": helpers.tokens(8, seed=9)}], "random_plans": 3}
    batches = [{"input_ids": helpers.tokens(8)}]
    settings = {"targets": ["vllm"], "noise": "measured", "kl": 0.05, "validation": heldout}
    plan = mp.tune(model, batches, out=tmp_path / "run", **settings)
    linear = {op.name for op in Run(tmp_path / "run").graph.ops if op.kind == "linear"}
    assert set(plan.quantized) == linear
    depends_on = read(tmp_path / "run", "sensitivity.json")["depends_on"]
    assert (depends_on["noise.method"], depends_on["noise.device"]) == ("dynamic", "vllm")
    validation = read(tmp_path / "run", "validation.json")
    assert validation["through"] == "hooks"
    assert 0.8 < validation["kl"]["ratio"] < 1.25
    assert call("solve", tmp_path / "run", "kl=0.04").exit_code == 0
    with pytest.raises(InputError, match="rounding is not that of target vllm"):
        mp.tune(model, batches, out=tmp_path, **settings | {"validation": heldout | {"through": "inc"}})


def test_files_for_another_target(folder):
    assert call("solve", folder, "tau=0.0005", "targets=[optimum-habana]").exit_code == 0
    result = call("emit", folder, "--target", "optimum-habana")
    assert result.exit_code == 0, result.output
    checked = call("check", folder / "configs" / "optimum-habana.json", "--modules", folder / "graph.json")
    assert checked.exit_code == 0, checked.output
    count = sum(format_name != "fp32" for format_name in read(folder, "plan.json")["formats"].values())
    assert f"INC would quantize {count} of" in checked.output


def test_frontier_and_report(folder):
    assert call("solve", folder, "tau=0.0005").exit_code == 0
    assert call("frontier", folder, "--points", 3, "--draws", 1).exit_code == 0
    result = call("report", folder)
    assert result.exit_code == 0, result.output
    page = (folder / "report.html").read_text()
    assert "Mixed-precision plan of LlamaForCausalLM" in page
    assert "inc_mp_plugin.tune(model, batches" in page
    assert "inc-mp tune recipe.yaml" not in page
    assert call("experiment", folder, "choices").exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "{folder}"],
        ["validate", "{folder}", "--time"],
        ["experiment", "{folder}", "curve"],
        ["tune", "{folder}/recipe.json", "--out", "{folder}/other"],
    ],
    ids=["validate", "time", "experiment", "tune"],
)
def test_what_needs_the_model_says_so(folder, arguments):
    result = call(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "LlamaForCausalLM was in the memory of a Python script" in result.output


def test_a_recipe_does_not_replace_it(folder, tmp_path):
    project = helpers.small_project(tmp_path)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = call("tune", project / "recipe.yaml", "--out", folder)
    assert result.exit_code == 2
    assert "holds the plan of a model that a Python script had in memory" in told(result)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_every_setting_is_in_the_recipe(tmp_path):
    model = helpers.language_model("llama").bfloat16()
    serving = {"kv_cache": "fp8", "attention": "flash", "reuse_cache": True}
    settings = {"objective": "roofline", "device": "gaudi3", "request": mp.Request(32, 4, 2)}
    targets = ("optimum-habana", "vllm-gaudi")
    plan = mp.tune(model, BATCHES, gain_fraction=0.4, targets=targets, out=tmp_path, **serving, **settings)
    recipe = Run(tmp_path).recipe
    assert (recipe.gain_fraction, recipe.tau, recipe.targets) == (0.4, None, targets)
    assert (recipe.kv_cache, recipe.attention, recipe.reuse_cache) == ("fp8", "flash", True)
    assert (recipe.objective, recipe.device, recipe.request.output_tokens) == ("roofline", "gaudi3", 4)
    assert recipe.calibration.samples == 6
    before = json.loads((tmp_path / "plan.json").read_text())
    result = call("solve", tmp_path)
    assert result.exit_code == 0, result.output
    assert "plan.json: still valid, reused" in result.output
    assert read(tmp_path, "plan.json") == before
    assert before["formats"] == dict(plan.formats)


def test_a_folder_that_is_in_use(model, tmp_path):
    with ThreadPoolExecutor(1) as other, locked(tmp_path), pytest.raises(InputError, match="is in use: "):
        other.submit(mp.tune, model, BATCHES, tau=0.001, out=tmp_path).result()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("strategy", ["eagl", "alps", "prefix"])
def test_every_strategy_can_be_solved_for_again(model, tmp_path, strategy):
    mp.tune(model, BATCHES, tau=0.001, strategy=strategy, out=tmp_path)
    result = call("solve", tmp_path)
    assert "plan.json: still valid, reused" in result.output
    assert call("solve", tmp_path, "tau=0.0002", f"strategy={strategy}").exit_code == 0


def test_the_folder_of_an_inc_script(model, tmp_path):
    from neural_compressor.torch.quantization import quantize

    config = mp.IPMSEConfig(tau=0.0005, dump_stats_path=str(tmp_path / "hqt" / "measure"))
    quantize(helpers.language_model("llama"), config, run_fn=lambda m: [m(**batch) for batch in BATCHES])
    folder = tmp_path / "hqt" / "ip_mse" / "measure"
    plan = read(folder, "plan.json")
    assert "plan.json: still valid, reused" in call("solve", folder).output
    assert call("emit", folder, "--target", "cpu-qdq").exit_code == 0
    assert call("solve", folder, "tau=0.0001").exit_code == 0
    assert read(folder, "plan.json")["predicted"]["gain"] < plan["predicted"]["gain"]
    assert call("report", folder).exit_code == 0
    assert "was in the memory of a Python script" in call("validate", folder).output


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({}, "give kl"),
        ({"tau": -1.0}, "tau is -1.0; it must be a number above 0"),
        ({"tau": 0.1, "strategy": "fastest"}, "strategy is 'fastest': input should be 'ip_mse', "),
        ({"tau": 0.1, "objective": "speed"}, "objective is 'speed': input should be 'memory', "),
        ({"tau": 0.1, "device": "tpu"}, "device is 'tpu': input should be 'gaudi2', "),
        ({"budget": 2}, "budget is 2; it must be a number above 0 and at most 1"),
        ({"gain_fraction": 0.5, "budget": 0.5}, "say the same thing twice"),
        ({"tau": 0.1, "formats": ("fp7",)}, "unknown format 'fp7'"),
        ({"tau": 0.1, "confidence": 2.0}, "confidence is 2.0"),
    ],
)
def test_what_no_plan_can_be_made_for_is_refused_at_once(model, tmp_path, given, text):
    with pytest.raises(InputError, match=text):
        mp.tune(model, [{"input_ids": helpers.tokens(2)}], out=tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_the_names_of_the_first_version_translate(model, tmp_path):
    """`mp.Noise` and `mp.Clock` mean what the words mean that took their place, and say which."""
    settings = mp.TimingSettings(repeats=3)
    clock = mp.Clock("cpu", settings, every_group=True)
    with pytest.warns(DeprecationWarning, match=r"give timing=mp.TimingSettings\(device"):
        assert timing_from(None, clock) == replace(settings, device="cpu", every_group=True)
    with pytest.warns(DeprecationWarning, match='give noise="measured", scales='):
        old = mp.tune(model, BATCHES, tau=0.0002, noise=mp.Noise("measured", SCALES), out=tmp_path / "old")
    new = mp.tune(model, BATCHES, tau=0.0002, noise="measured", scales=SCALES, out=tmp_path / "new")
    assert (old.formats, old.loss_mse, old.noise) == (new.formats, new.loss_mse, "measured")


def test_a_noise_that_there_is_not(model, tmp_path):
    with pytest.raises(mp.InputError, match="^noise is 'loud': input should be 'uniform', "):
        mp.tune(model, BATCHES, tau=0.1, noise="loud", out=tmp_path)
    assert list(tmp_path.iterdir()) == []
