"""Baselines, frontier, noise, closed loop and experiments on a small model, as a user runs them."""

import json
import shutil

import helpers
import numpy as np
import pytest
import torch
import transformers
from helpers import call, read, told

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.runtime.store import fingerprint

KEYS = ["verify=true", "noise=measured", "tau=0.00006", "validation.samples=8"]


@pytest.fixture(scope="session")
def project(made_once):
    """The small project with 16 held-out samples: 8 for the report, 8 for the closed loop."""

    def make(folder):
        helpers.small_project(folder)
        lines = (helpers.SHIPPED / "heldout.jsonl").read_text().splitlines()[:16]
        (folder / "heldout.jsonl").write_text("\n".join(lines))

    return made_once("proof", make)


@pytest.fixture(scope="session")
def proved(made_once, project):
    """A run with measured noise and a closed loop."""

    def tune(folder):
        result = call("tune", project / "recipe.yaml", *KEYS, "--out", folder)
        assert result.exit_code == 0, result.output

    return made_once("proved", tune)


@pytest.fixture
def folder(proved, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(proved, tmp_path / "run")


def test_the_closed_loop_holds_what_it_says(proved):
    loop, plan = read(proved, "verification.json"), read(proved, "plan.json")
    choice = loop["rounds"][loop["chosen"]]
    assert choice["measured_nrmse"] <= choice["interval"][1] <= loop["tau"] == plan["tau"] == 0.00006
    assert choice["gain"] == plan["predicted"]["gain"]
    assert plan["correction"] == choice["correction"]
    larger = [tested for tested in loop["rounds"] if tested["gain"] > choice["gain"]]
    assert all(tested["interval"][1] > loop["tau"] for tested in larger)
    lower, upper = choice["interval"]
    assert lower < choice["measured_nrmse"] < upper


def test_the_report_is_on_samples_that_the_loop_never_read(project, proved):
    """Losses of the base format, sample by sample as transformers gives them: the first 8, the next 8."""
    model = transformers.AutoModelForCausalLM.from_pretrained(project / "model").float()
    tokenizer = transformers.AutoTokenizer.from_pretrained(project / "model")
    texts = [json.loads(line)["text"] for line in (project / "heldout.jsonl").read_text().splitlines()]
    expected = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            expected.append(float(model(input_ids=ids, labels=ids).loss))
    none = fingerprint({"ops": []})
    for name, part in (("measured_losses.npz", expected[:8]), ("verified_losses_hooks.npz", expected[8:])):
        assert np.load(proved / name)[none] == pytest.approx(part, rel=1e-4)
    plan, validation = read(proved, "plan.json"), read(proved, "validation.json")
    lowered = [op for op, format_name in plan["formats"].items() if format_name != "fp32"]
    assert validation["plan"]["quantized"] == lowered
    losses = np.load(proved / "measured_losses.npz")
    changes = losses[fingerprint({"ops": sorted(lowered)})] - losses[none]
    assert validation["nrmse"] == pytest.approx(((changes**2).mean() / (losses[none] ** 2).mean()) ** 0.5)


def test_too_few_samples_for_both_are_told_before_anything_is_done(project, tmp_path):
    result = call("tune", project / "recipe.yaml", *KEYS, "validation.samples=9", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "holds 16 samples, 18 are asked for" in told(result)
    assert "verify needs two times validation.samples, which is 9" in told(result)
    assert not (tmp_path / "run" / "graph.json").exists()


def test_a_sample_in_both_parts_is_told(project, tmp_path):
    lines = (project / "heldout.jsonl").read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*lines[:12], lines[2], *lines[13:]]))
    keys = [*KEYS, f"validation.data={mixed}", "--out", tmp_path / "run"]
    result = call("tune", project / "recipe.yaml", *keys)
    assert result.exit_code == 2
    assert "line 13: this text is among the first 8, too" in result.output


def test_what_was_measured_is_not_measured_again(project, folder):
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    result = call("tune", project / "recipe.yaml", *KEYS, "--out", folder)
    assert result.exit_code == 0
    assert "Quantizing with INC" not in result.output
    (folder / "verification.json").unlink()
    result = call("tune", project / "recipe.yaml", *KEYS, "--out", folder)
    assert "Quantizing with INC" not in result.output  # every loss is known
    assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before


def test_measured_noise_serves_the_other_models_too(project, folder):
    stored = read(folder, "sensitivity.json")
    assert stored["measured_rounding"] == ["fp8_e4m3"]
    plans = {}
    for noise in ("measured", "uniform", "log_uniform"):
        result = call("solve", folder, f"noise={noise}", "gain_fraction=1")
        assert result.exit_code == 0, result.output
        plans[noise] = read(folder, "plan.json")["predicted"]["loss_mse"]
    assert plans["log_uniform"] == pytest.approx(0.5410 * plans["uniform"], rel=1e-4)
    assert plans["measured"] != plans["uniform"]
    keys = [key for key in KEYS if not key.startswith("noise")]
    result = call("tune", project / "recipe.yaml", *keys, "--out", folder)
    assert "sensitivity.json: still valid, reused" in result.output
    assert read(folder, "sensitivity.json") == stored


def test_noise_that_was_not_measured(run_folder):
    result = call("solve", run_folder, "noise=measured")
    assert result.exit_code == 2
    assert "again" not in result.output  # nothing was made
    assert (
        "the noise of fp8_e4m3 was not measured; `inc-mp tune` with noise=measured does it" in result.output
    )


@pytest.mark.parametrize(
    ("keys", "remark"),
    [
        (["strategy=uniform", "tau=0.01"], "uniform lowers every op that may be: tau 0.01 bounds nothing"),
        (["gain_fraction=0.5", "confidence=0.9"], "confidence 0.9 holds nothing without kl or tau"),
        (["gain_fraction=0.5", "tau=0.01", "confidence=0.9"], ""),
    ],
)
def test_a_key_without_effect_is_said(folder, keys, remark):
    result = call("solve", folder, *keys, "noise=uniform")
    assert result.exit_code == 0, result.output
    assert (remark or "Predicted") in told(result)
    effects = ("bounds nothing", "holds nothing")
    assert bool(remark) == any(effect in told(result) for effect in effects)


@pytest.mark.parametrize("strategy", ["random", "prefix", "uniform"])
def test_baselines_are_strategies(folder, strategy):
    result = call("solve", folder, f"strategy={strategy}", "seed=3", "noise=uniform")
    assert result.exit_code == 0, result.output
    plan = read(folder, "plan.json")
    assert plan["strategy"] == strategy
    assert plan["predicted"]["loss_mse"] <= plan["budget"]
    assert "This plan is predicted; `inc-mp tune`" in result.output
    emitted = call("emit", folder, "--target", "optimum-habana")
    assert emitted.exit_code == 0, emitted.output


def test_confidence(folder):
    upper = []
    for keys in (["confidence=0.9"], []):
        assert call("solve", folder, "tau=0.0001", "noise=uniform", *keys).exit_code == 0
        plan = read(folder, "plan.json")
        upper.append((plan["predicted"]["interval"][1], plan["predicted"]["gain"]))
    budget = 0.0001**2 * read(folder, "sensitivity.json")["loss_ms"]
    assert upper[0][0] <= budget < upper[1][0]
    assert upper[0][1] <= upper[1][1]


def test_frontier(folder):
    result = call("frontier", folder, "--points", 9, "--draws", 2)
    assert result.exit_code == 0, result.output
    assert "memory (exact)" in result.output
    assert "knee" in result.output
    memory = read(folder, "frontier.json")["objectives"]["memory"]
    exact, prefix, *draws = memory["curves"]
    names = ["prefix", "random", "random", "ends", "practice"]
    assert [curve["strategy"] for curve in (prefix, *draws)] == names
    assert exact["gain"][0] == 0
    assert exact["gain"][-1] == memory["largest_gain"]
    # The plan of a point can be had by its tau.
    k = len(exact["ops"]) // 2
    tau = (exact["loss_mse"][k] / memory["loss_ms"]) ** 0.5 * (1 + 1e-9)
    assert call("solve", folder, f"tau={tau!r}").exit_code == 0
    assert read(folder, "plan.json")["predicted"]["gain"] == exact["gain"][k]
    assert "frontier.json: still valid" in call("frontier", folder, "--points", 9, "--draws", 2).output


def test_choices_need_no_model(folder):
    result = call("experiment", folder, "choices")
    assert result.exit_code == 0, result.output
    trials = read(folder, "experiments/choices-memory.json")["trials"]
    names = ["ip_mse", *["random"] * 3, "prefix", "uniform", "practice", "ends"]
    assert [t["strategy"] for t in trials] == names
    assert all(t["measured"] is None for t in trials)


def stored_losses(folder):
    """The losses of every choice of ops that was measured, by the hash that names the choice."""
    arrays = np.load(folder / "measured_losses_hooks.npz")
    return {name: arrays[name] for name in arrays.files if len(name) == len(fingerprint({}))}


def test_the_curve_measures_every_strategy_at_equal_gain(folder):
    result = call("experiment", folder, "curve", "--draws", 2)
    assert result.exit_code == 0, result.output
    experiment = read(folder, "experiments/curve-memory.json")
    losses = stored_losses(folder)
    assert len({len(sample_losses) for sample_losses in losses.values()}) == 1
    for trial in experiment["trials"]:
        assert trial["gain"] >= trial["level"] * experiment["largest_gain"] * (1 - 1e-12)
        assert trial["measured"] is not None
    uniform = experiment["trials"][-1]
    assert uniform["strategy"] == "uniform"
    linear = [op for op in experiment["ops"] if "matmul" not in op]  # attention products save no memory
    assert sorted(uniform["quantized"]) == sorted(linear)
    practice = experiment["trials"][-2]
    assert practice["strategy"] == "practice"
    assert sorted(practice["quantized"]) == sorted(set(linear) - {"lm_head"})
    beside = [t for t in experiment["trials"] if t["level"] == practice["level"]]
    assert [t["strategy"] for t in beside] == ["ip_mse", "prefix", "ends", "random", "random", "practice"]
    assert all(t["gain"] >= practice["gain"] for t in beside)
    assert min(trial["predicted"] for trial in beside) == beside[0]["predicted"] <= practice["predicted"]


def test_fewer_points_and_samples_are_less_work(folder):
    whole = call("experiment", folder, "curve", "--draws", 2)
    assert whole.exit_code == 0, whole.output
    kept = (folder / "measured_losses_hooks.npz").read_bytes()
    full = read(folder, "experiments/curve-memory.json")
    result = call("experiment", folder, "curve", "--draws", 2, "--points", 2)
    assert result.exit_code == 0, result.output
    experiment = read(folder, "experiments/curve-memory.json")
    practice = next(t["level"] for t in full["trials"] if t["strategy"] == "practice")
    assert {trial["level"] for trial in experiment["trials"]} == {0.35, 0.8, practice, 1.0}
    assert experiment["trials"] == [t for t in full["trials"] if t["level"] in (0.35, 0.8, practice, 1.0)]
    assert "Taking the scales" not in result.output  # all of it is known
    result = call("experiment", folder, "curve", "--draws", 1, "--points", 1, "--samples", 2)
    assert result.exit_code == 0, result.output
    experiment = read(folder, "experiments/curve-memory.json")
    assert experiment["samples"] == 2
    assert {trial["level"] for trial in experiment["trials"]} == {0.65, practice, 1.0}
    losses = stored_losses(folder / "experiments" / "on-2-samples")
    distinct = {tuple(trial["quantized"]) for trial in experiment["trials"]}
    assert {len(sample_losses) for sample_losses in losses.values()} == {2}
    assert len(losses) == len(distinct) + 1
    assert f"Plans of curve, {len(distinct)} plans: " in result.output
    assert (folder / "measured_losses_hooks.npz").read_bytes() == kept
    assert call("report", folder).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "curve --objective memory --draws 1 --points 1 --samples 2" in page


def test_predictions_are_held_against_measurements(folder):
    result = call("experiment", folder, "prediction", "--draws", 5)
    assert result.exit_code == 0, result.output
    experiment = read(folder, "experiments/prediction-memory.json")
    trials, drawn = experiment["trials"][:-5], experiment["trials"][-5:]
    assert [tuple(t["quantized"]) for t in drawn] == random_plans(experiment["ops"], 5, 0)
    assert [t["level"] for t in drawn] == [len(t["quantized"]) / len(experiment["ops"]) for t in drawn]
    assert all(t["predicted"] > 0 and t["interval"] and t["kl"]["measured"] > 0 for t in drawn)
    assert [t["level"] for t in trials] == [0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.0]
    assert [t["predicted"] for t in trials] == sorted(t["predicted"] for t in trials)
    kl = np.array([[t["kl"]["predicted"], t["kl"]["measured"]] for t in trials if t["quantized"]])
    assert 0.98 < np.corrcoef(np.log(kl.T))[0, 1] <= 1.0
    assert 0.7 < kl[:, 0].sum() / kl[:, 1].sum() < 1.4
    assert "KL, predicted" in told(result)


def test_baselines_without_a_gain_are_left_out_and_said_so(folder, monkeypatch):
    def unknown(*_, **__):
        message = "the plan lowers ops together whose gain was not measured"
        raise InputError(message)

    monkeypatch.setattr("inc_mp_plugin.experiments.plans.baseline", unknown)
    result = call("experiment", folder, "choices")
    assert result.exit_code == 0, result.output
    assert result.output.count("left out: the plan lowers ops together") == 7
    trials = read(folder, "experiments/choices-memory.json")["trials"]
    assert [t["strategy"] for t in trials] == ["ip_mse"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["experiment", "curves"], "unknown experiment 'curves'; did you mean 'curve'"),
        (["experiment", "curve", "--objective", "speed"], "objective 'speed' is not among the gains"),
        (["experiment", "curve", "--draws", "0"], "draws is 0; give at least 1"),
        (["experiment", "curve", "--points", "7"], "points is 7; give at most 6 for curve"),
        (["experiment", "prediction", "--samples", "0"], "samples is 0; give at least 1"),
        (["experiment", "curve", "--samples", "100"], "holds 16 samples, 100 are asked for"),
        (["solve", "strategy=prefxi"], "override strategy=prefxi: input should be 'ip_mse'"),
        (["solve", "confidence=2"], "override confidence=2: input should be less than 1"),
        (["solve", "strategy=prefix", "gain_fraction=0.5"], "held to a threshold: give kl or tau"),
    ],
)
def test_mistakes(folder, arguments, message):
    result = call(arguments[0], folder, *arguments[1:])
    assert result.exit_code == 2
    assert message in result.output
    assert "Traceback" not in result.output


def test_heldout_samples_may_not_be_calibration_samples(project, tmp_path):
    lines = (project / "calibration.jsonl").read_text().splitlines()
    fresh = (project / "heldout.jsonl").read_text().splitlines()
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text("\n".join([*fresh[:3], lines[1], *fresh[3:]]))
    keys = [f"validation.data={mixed}", "--out", tmp_path / "run"]
    result = call("tune", project / "recipe.yaml", *keys)
    assert result.exit_code == 2
    assert "line 4: this text is a calibration sample" in result.output


@pytest.mark.parametrize(
    ("line", "text"),
    [('{"text": 3}\n' * 4, "line 1: not an object"), ("", "holds 0 samples"), (None, "does not exist")],
)
def test_heldout_data_are_looked_at_before_anything_is_done(project, tmp_path, line, text):
    path = tmp_path / "heldout.jsonl"
    if line is not None:
        path.write_text(line)
    out = tmp_path / "out"
    result = call("tune", project / "recipe.yaml", f"validation.data={path}", "--out", out)
    assert result.exit_code == 2
    assert text in told(result)
    assert not out.exists()
