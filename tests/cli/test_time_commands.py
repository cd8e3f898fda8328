"""Measured and modelled time from the command line, on a small model: results, resume, mistakes."""

import json
import signal
import subprocess
import sys
import time

import helpers
import pytest
from helpers import SHIPPED, call, read


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A configuration without weights, and a recipe that times it on this CPU."""
    folder = tmp_path_factory.mktemp("timed")
    helpers.small_config().save_pretrained(folder / "model")
    lines = (SHIPPED / "calibration.jsonl").read_text().splitlines()[:8]
    (folder / "calibration.jsonl").write_text("\n".join(lines))
    (folder / "recipe.yaml").write_text(
        f"""
model: {{name_or_path: {folder}/model, weights: random, tokenizer: {SHIPPED}, dtype: fp32}}
calibration: {{data: {folder}/calibration.jsonl, samples: 4, sequence_length: 32, batch_size: 2}}
objective: empirical_time
device: cpu
formats: [bf16]
tau: 0.001
request: {{prompt_tokens: 8, output_tokens: 2}}
timing: {{device: cpu, repeats: 3, most_repeats: 3}}
targets: [cpu-bf16]
"""
    )
    return folder


@pytest.fixture(scope="module")
def finished(project):
    result = call("tune", project / "recipe.yaml", "--out", project / "finished")
    assert result.exit_code == 0, result.output
    return project / "finished"


def test_artefacts_of_measured_time(finished):
    timing, gains = read(finished, "timing.json"), read(finished, "gains.json")["objectives"]
    assert timing["passes"] == {"ttft": 1, "tpot": 2}
    assert len(timing["configurations"]) == 7 + 1 + 3 + 1 + 1
    assert list(gains) == ["empirical_time", "memory", "theoretical_time"]
    assert gains["empirical_time"]["source"] == "measured"
    shared = [group["measured_on"] for group in gains["empirical_time"]["groups"]]
    assert shared[:4] == [[]] * 4
    assert shared[4][0] == "model.layers.0.self_attn.q_proj"
    assert set(read(finished, "configs/cpu-bf16.json")) == {"mixed_precision"}


def test_a_second_call_measures_nothing(project, finished):
    result = call("tune", project / "recipe.yaml", "--out", finished)
    assert "timing.json: still valid, reused" in result.output
    assert "Measuring" not in result.output


def test_another_objective_and_threshold_without_the_model(finished, tmp_path):
    sources = {"memory": "exact", "theoretical_time": "modelled", "empirical_time": "measured"}
    for objective, source in sources.items():
        result = call("solve", finished, f"objective={objective}", "tau=0.0005")
        assert result.exit_code == 0, result.output
        assert f"Gain ({objective}, {source})" in result.output


@pytest.mark.slow
def test_every_group_is_measured_on_its_own(project, tmp_path):
    result = call("tune", project / "recipe.yaml", "--every-group", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    groups = read(tmp_path, "gains.json")["objectives"]["empirical_time"]["groups"]
    assert not any(group["measured_on"] for group in groups)


def test_plans_are_timed_at_several_thresholds(finished):
    result = call("validate", finished, "--time", "--tau", "0.0002", "--tau", "0.01")
    assert result.exit_code == 0, result.output
    validation = read(finished, "time_validation.json")
    assert {(plan["objective"], plan["tau"]) for plan in validation["plans"]} == {
        (objective, tau)
        for objective in ("empirical_time", "memory", "theoretical_time")
        for tau in (0.0002, 0.01)
    }
    assert "plans save what their groups add up to" in result.output
    assert "sum of ops, ms" in result.output
    again = call("validate", finished, "--time", "--tau", "0.0002", "--tau", "0.01")
    assert "time_validation.json: still valid, reused" in again.output


@pytest.mark.slow
def test_a_plan_for_time_is_validated_for_loss_too(project, tmp_path):
    heldout = [json.dumps({"text": f"A held-out sentence, number {n}, of some words."}) for n in range(3)]
    (tmp_path / "heldout.jsonl").write_text("\n".join(heldout))
    section = f"validation={{data: {tmp_path}/heldout.jsonl, samples: 3, random_plans: 4}}"
    arguments = ["tune", project / "recipe.yaml", section, "objective=memory", "--out", tmp_path / "run"]
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "run", "validation.json")["plan"]["measured"] > 0


def test_modelled_time_needs_no_measurement(project, tmp_path):
    arguments = [
        "model.dtype=bf16",
        "formats=[fp8_e4m3]",
        "device=gaudi3",
        "objective=roofline",
        "timing=null",
    ]
    result = call("tune", project / "recipe.yaml", *arguments, "targets=[optimum-habana]", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    gains = read(tmp_path, "gains.json")["objectives"]
    assert gains["roofline"]["source"] == "modelled"
    assert "empirical_time" not in gains
    assert "Gain (roofline, modelled)" in result.output


@pytest.mark.slow
def test_a_killed_run_goes_on_where_it_stopped(project, tmp_path):
    code = "import sys; from inc_mp_plugin.cli.main import main; main()"
    arguments = ["tune", str(project / "recipe.yaml"), "timing.repeats=200", "timing.most_repeats=200"]
    command = [sys.executable, "-c", code, *arguments, "--out", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    deadline = time.time() + 120
    while not (tmp_path / "timing.partial.npz").exists() and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "timing.json").exists()
    result = call(*arguments, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "going on after" in result.output
    assert not (tmp_path / "timing.partial.npz").exists()
    pairs = [timed["pairs"] for timed in read(tmp_path, "timing.json")["configurations"]]
    assert pairs == [[200, 200]] * len(pairs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["formats=[fp8_e4m3]", "targets=[cpu-qdq]"], "a CPU only emulates fp8_e4m3"),
        (["timing.device=cuda"], "'cuda', but torch finds no CUDA device here; give 'cpu'"),
        (
            ["timing.device=hpu", "model.dtype=bf16", "formats=[fp8_e4m3]", "targets=[optimum-habana]"],
            "habana_frameworks",
        ),
        (["timing.device=tpu"], "timing.device=tpu: input should be 'cpu', "),
        (["timing.repeats=2"], "timing.repeats=2: input should be "),
        (["timing.budget_s=0"], "timing.budget_s=0: input should be "),
        (["request.prompt_tokens=1"], "request.prompt_tokens=1: input should be "),
        (["request.prompt_tokens=80"], "is 82, but the model's context is 64 tokens"),
        (["targets=[cpu-qdq]"], "target cpu-qdq runs fp8_e4m3, fp8_e5m2 beside any base format, not bf16"),
        (["model.dtype=fp16"], "target cpu-bf16 runs bf16, fp16 beside fp32"),
        (["model.config={hidden: 3}"], "model.config.hidden is not a value of the configuration"),
        (["model.weights=trained", "model.config={hidden_size: 3}"], "add weights: random"),
        (["model.weights=none"], "model.weights=none: input should be "),
        (["objective=speed"], "objective=speed: input should be "),
        (["timing.repeat=3"], "unknown key 'timing.repeat'; did you mean 'repeats'?"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(project, tmp_path, arguments, message):
    result = call("tune", project / "recipe.yaml", *arguments, "--out", tmp_path)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_time_cannot_be_validated_where_none_was_measured(project, tmp_path):
    call("tune", project / "recipe.yaml", "objective=memory", "timing=null", "--out", tmp_path)
    result = call("validate", tmp_path, "--time")
    assert result.exit_code == 2
    assert "holds no measured time; run `inc-mp tune` with objective=empirical_time" in result.output
    result = call("validate", tmp_path, "--tau", "0.1")
    assert (result.exit_code, "--tau and --kl go with --time" in result.output) == (2, True)


def test_an_impossible_threshold(finished):
    result = call("validate", finished, "--time", "--tau", "-1")
    assert result.exit_code == 2
    assert "tau is -1.0; it must be a number above 0" in result.output
