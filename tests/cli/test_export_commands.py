"""`inc-mp export`: what it writes and prints, and what it refuses before it writes."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import helpers
import pytest
from helpers import call, read, told
from safetensors.torch import load_file

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime import store
from inc_mp_plugin.stages.sensitivity_arrays import to_arrays


@pytest.fixture(scope="module")
def planned(made_once, finished, tmp_path_factory):
    """A folder whose plan vLLM can run: everything in FP8, products included, though they gain no memory."""

    def solve(folder):
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        assert call("solve", folder, "tau=5", "targets=[vllm-gaudi]").exit_code == 0
        content = rewritten(folder, "plan")
        content["formats"] = dict.fromkeys(content["formats"], "fp8_e4m3")
        store.write_artefact(folder / "plan.json", "plan", content)

    # A copy: other processes of the tests may export at the same time, and a command locks its folder.
    shared = made_once("planned for vllm", solve)
    return Path(shutil.copytree(shared, tmp_path_factory.mktemp("planned") / "run"))


def rewritten(folder, kind):
    """Content of an artefact that a test writes anew, without its marks."""
    return store.unmarked(read(folder, f"{kind}.json"), kind)


@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_the_plan_is_what_is_written(planned, tmp_path, scheme):
    out = tmp_path / "out"
    result = call("export", planned, "--out", out, "--scheme", scheme)
    assert result.exit_code == 0, result.output
    plan = Run(planned).plan
    linear = {op.name for op in Run(planned).graph.ops if op.kind == "linear"}
    assert len(plan.quantized) == 19 > len(linear) == 15
    written = load_file(out / "model.safetensors")
    scales = {"weight_scale"} if scheme == "dynamic" else {"weight_scale", "input_scale"}
    assert {name.rpartition(".")[0] for name in written if name.endswith("_scale")} == linear
    assert {name.rpartition(".")[2] for name in written if name.endswith("_scale")} == scales
    assert read(out, "config.json")["quantization_config"]["ignore"] == []
    assert "15 linear ops in FP8" in result.output
    assert "4 planned ops stay in the base format: a checkpoint holds no product in FP8 (bgemm)" in told(
        result
    )


def test_what_is_written_is_predicted_anew(planned, tmp_path):
    """Without the products: the cost of the linear ops alone, by the arrays of the sensitivities."""
    result = call("export", planned, "--out", tmp_path / "out")
    (shown,) = re.findall(r"Predicted of this checkpoint \(loss MSE\): ([\d.e-]+)", told(result))
    run = Run(planned)
    rows = run.sensitivity.input + run.sensitivity.weight
    linear = [run.graph.by_name[op].kind == "linear" for op in run.sensitivity.ops]
    alpha = Costs(run.sensitivity).loss.row_costs("fp8_e4m3").sum() / rows.sum()
    assert float(shown) == pytest.approx(alpha * rows[:, linear].sum(axis=1).mean(), rel=1e-3)
    assert float(shown) < 0.999 * alpha * rows.sum(axis=1).mean()


def test_a_group_in_part_is_refused_before_anything_is_written(run_folder, tmp_path):
    """With the name of the group, and a command whose plan can be exported."""
    assert call("solve", run_folder, "strategy=prefix", "tau=0.00006").exit_code == 0
    out = tmp_path / "out"
    result = call("export", run_folder, "--out", out)
    assert result.exit_code == 2
    assert "model.layers.0.mlp.gate_up_proj: 1 of its 2 parts are in FP8" in told(result)
    assert not out.exists()
    assert not (tmp_path / ".out.partial").exists()
    command = told(result).partition("then export again: inc-mp ")[2]
    arguments = command.replace(str(run_folder), "FOLDER").replace("'", "").split()
    assert call(*[argument.replace("FOLDER", str(run_folder)) for argument in arguments]).exit_code == 0
    assert call("export", run_folder, "--out", out).exit_code == 0


def test_a_cache_in_fp8_stays_and_is_not_in_the_prediction(run_folder, tmp_path):
    solve = ("solve", run_folder, "targets=[vllm-gaudi]", "tau=5")
    predicted = []
    for number, cache in enumerate(("bf16", "fp8")):
        assert call(*solve, f"kv_cache={cache}").exit_code == 0
        result = call("export", run_folder, "--out", tmp_path / str(number))
        assert ("it stays as it is" in told(result)) == (cache == "fp8")
        predicted += re.findall(r"\(loss MSE\): ([\d.e-]+)", told(result))
    assert predicted[0] == predicted[1]


def test_another_format_is_refused(run_folder, tmp_path):
    content = rewritten(run_folder, "plan")
    content["formats"]["lm_head"] = "fp8_e5m2"
    store.write_artefact(run_folder / "plan.json", "plan", content)
    result = call("export", run_folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "'lm_head' in fp8_e5m2; a checkpoint for vLLM holds fp8_e4m3 alone" in told(result)


def test_static_scales_need_the_largest_inputs(planned, tmp_path):
    folder = shutil.copytree(planned, tmp_path / "run")
    arrays = to_arrays(replace(Run(folder).sensitivity, maxabs={}))
    content = rewritten(folder, "sensitivity")
    content["arrays_sha256"] = store.write_arrays(folder / "sensitivity.npz", arrays)
    store.write_artefact(folder / "sensitivity.json", "sensitivity", content)
    result = call("export", folder, "--out", tmp_path / "out", "--scheme", "static")
    assert result.exit_code == 2
    assert f"inc-mp tune {folder}/recipe.json --out NEW" in told(result)
    assert not (tmp_path / "out").exists()
    assert call("export", folder, "--out", tmp_path / "out").exit_code == 0


def changed_model(folder, tmp_path, change):
    """A copy of a run, whose model is a copy that `change` has changed; the run knows the copy as it was."""
    model = shutil.copytree(read(folder, "recipe.json")["model"]["name_or_path"], tmp_path / "model")
    copy = shutil.copytree(folder, tmp_path / "run")
    content = rewritten(copy, "recipe")
    content["model"]["name_or_path"] = str(model)
    store.write_artefact(copy / "recipe.json", "recipe", content)
    change(model)
    return copy


def truncate(model):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def quantize(model):
    config = read(model, "config.json") | {"quantization_config": {"quant_method": "fp8"}}
    (model / "config.json").write_text(json.dumps(config))


def edit(model):
    config = read(model, "config.json") | {"rms_norm_eps": 1e-5}
    (model / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (truncate, "model.safetensors is truncated or damaged"),
        (quantize, "is quantized already; tune and export its original"),
        (edit, "is not the model that was measured; run `inc-mp tune` again"),
        (lambda model: (model / "model.safetensors").unlink(), "holds no safetensors files"),
    ],
    ids=["truncated", "quantized", "another", "no weights"],
)
def test_another_model_than_the_measured_is_refused(planned, tmp_path, change, message):
    folder = changed_model(planned, tmp_path, change)
    result = call("export", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert message in told(result)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--out", "{out}"], "is missing; run `inc-mp tune"),
        (["{planned}"], "--out is missing"),
        (["{planned}", "--out", "{planned}"], "is there already"),
        (["{planned}", "--out", "{out}", "--scheme", "statics"], "did you mean 'static'?"),
    ],
)
def test_mistakes(planned, tmp_path, arguments, message):
    names = {"{planned}": str(planned), "{out}": str(tmp_path / "out")}
    result = call("export", *[names.get(argument, argument) for argument in arguments])
    assert result.exit_code == 2, result.output
    assert message in told(result)
    assert not list(tmp_path.iterdir())


def test_a_plan_without_a_linear_op_is_refused(run_folder, tmp_path):
    assert call("solve", run_folder, "tau=1e-9").exit_code == 0
    result = call("export", run_folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "has no linear op in FP8" in told(result)


def test_a_tied_head_stays(tmp_path):
    """Its weight is the embedding's, which no server would load as FP8."""
    folder = helpers.small_project(tmp_path)
    import transformers

    config = helpers.small_config()
    config.tie_word_embeddings = True
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "model")
    run = tmp_path / "run"
    overrides = ["tau=5", "strategy=uniform", "targets=[vllm-gaudi]", "validation=null"]
    result = call("tune", folder / "recipe.yaml", *overrides, "--out", run)
    assert result.exit_code == 0, result.output
    result = call("export", run, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "1 planned ops stay in the base format: its weight is used elsewhere, too (lm_head)" in told(
        result
    )
    assert read(tmp_path / "out", "config.json")["quantization_config"]["ignore"] == ["lm_head"]
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert str(written["model.embed_tokens.weight"].dtype) == "torch.float32"
    assert "lm_head.weight_scale" not in written


def test_a_plan_for_vllm_is_priced_and_measured_as_it_is_written(project, tmp_path):
    """Linear ops alone, tied as vLLM runs them, rounded by channel and token; no file of INC's."""
    run, out = tmp_path / "run", tmp_path / "out"
    overrides = ["targets=[vllm]", "noise=measured", "tau=5", "validation.random_plans=3"]
    result = call("tune", project / "recipe.yaml", *overrides, "--out", run)
    assert result.exit_code == 0, result.output
    assert "through hooks that round as vllm does" in told(result)
    depends_on = read(run, "sensitivity.json")["depends_on"]
    assert (depends_on["noise.method"], depends_on["noise.device"]) == ("dynamic", "vllm")
    planned = Run(run)
    assert {planned.graph.by_name[op].kind for op in planned.plan.quantized} == {"linear"}
    fused = {f"vllm: it is one {name}" for name in ("qkv_proj", "gate_up_proj")}
    assert {tie.why for tie in planned.demands.ties} == fused
    assert not (run / "configs").exists()
    result = call("export", run, "--out", out)
    assert result.exit_code == 0, result.output
    assert "It prices the rounding of scheme dynamic" in told(result)
    (shown,) = re.findall(r"Predicted of this checkpoint \(loss MSE\): ([\d.e-]+)", told(result))
    assert float(shown) == pytest.approx(planned.plan.loss_mse, rel=1e-3)
    for arguments in (
        ["emit", run, "--target", "vllm"],
        ["check", run / "recipe.json", "--modules", run / "graph.json", "--target", "vllm"],
    ):
        result = call(*arguments)
        assert result.exit_code == 2, result.output
        assert "target vllm reads no file of INC's, but a checkpoint: inc-mp " in told(result)
    result = call("validate", run, "--through", "inc")
    assert result.exit_code == 2, result.output
    assert "whose rounding is not that of target vllm; give hooks" in told(result)


@pytest.mark.parametrize(
    ("noise", "message"),
    [
        (
            "uniform",
            "It prices rounding by noise: uniform, not by the rounding of scheme dynamic; tune in",
        ),
        ("measured", "It prices maxabs_arbitrary of cpu, not the rounding of scheme dynamic; tune in"),
    ],
)
def test_another_rounding_than_the_written_is_told(project, tmp_path, noise, message):
    run, out = tmp_path / "run", tmp_path / "out"
    overrides = ["targets=[cpu-qdq,vllm]", f"noise={noise}", "tau=5", "validation=null"]
    assert call("tune", project / "recipe.yaml", *overrides, "--out", run).exit_code == 0
    assert message in told(call("export", run, "--out", out))


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_stacked_experts_from_end_to_end(tmp_path, scheme):
    """Their order is looked up in the model without weights; `check` finds nothing."""
    folder = helpers.small_project(tmp_path)
    model = helpers.mixture("llama4_text", vocab_size=1024)
    shutil.rmtree(folder / "model")
    model.save_pretrained(folder / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(helpers.SHIPPED / name, folder / "model")
    run, out = tmp_path / "run", tmp_path / "out"
    overrides = ["tau=5", "targets=[vllm-gaudi]", "validation=null"]
    result = call("tune", folder / "recipe.yaml", *overrides, "--out", run)
    assert result.exit_code == 0, result.output
    result = call("export", run, "--out", out, "--scheme", scheme)
    assert result.exit_code == 0, result.output
    assert call("check", out).exit_code == 0
    written = load_file(out / "model.safetensors")
    experts = {name for name in written if ".experts." in name and name.endswith("_proj.weight")}
    assert len(experts) == 2 * 4 * 3
    assert {str(written[name].dtype) for name in experts} == {"torch.float8_e4m3fn"}
    ups = [f"model.layers.0.feed_forward.experts.{i}.up_proj" for i in range(4)]
    if scheme == "static":  # one input scale for all experts of a layer, a weight scale for each
        assert len({float(written[f"{name}.input_scale"]) for name in ups}) == 1
        assert len({float(written[f"{name}.weight_scale"]) for name in ups}) == 4
