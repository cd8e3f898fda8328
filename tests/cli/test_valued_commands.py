"""EAGL and ALPS through the very commands of ip_mse: values, budgets, plans, files, and mistakes."""

import shutil

import helpers
import pytest
from helpers import call, read

import inc_mp_plugin as mp
from inc_mp_plugin.inc.check.measurements import load_captured
from inc_mp_plugin.sensitivity import alps

METHODS = ["eagl", "alps"]
BATCHES = [{"input_ids": helpers.tokens(2, 16, seed)} for seed in range(3)]


@pytest.fixture(scope="session")
def valued(made_once, project, finished):
    """A folder in which both methods were tuned."""

    def tune(folder):
        shutil.copytree(finished, folder, dirs_exist_ok=True)
        for method, others in zip(METHODS, [["validation=null"], []], strict=True):
            changes = [f"strategy={method}", "budget=0.8", "constraint=loss", *others]
            result = call("tune", project / "recipe.yaml", *changes, "--out", folder)
            assert result.exit_code == 0, result.output

    return made_once("valued", tune)


@pytest.fixture
def folder(valued, tmp_path):
    """A copy that a test may change."""
    return shutil.copytree(valued, tmp_path / "run")


def test_both_have_an_artefact_of_their_own(valued):
    for method, unit in zip(METHODS, ["bit", "loss"], strict=True):
        stored = read(valued, f"{method}.json")
        assert (stored["method"], stored["unit"], stored["schema"]) == (
            method,
            unit,
            "inc_mp_plugin/op_values/1",
        )
        ops = {op["name"] for op in read(valued, "graph.json")["ops"] if op["kind"] != "bgemm"}
        assert ops <= set(stored["values"]["fp8_e4m3"])
    assert not list(valued.glob("*partial*"))


@pytest.mark.parametrize("method", METHODS)
def test_a_plan_within_a_budget_of_cost(folder, method):
    result = call("solve", folder, f"strategy={method}", "budget=0.85")
    assert result.exit_code == 0, result.output
    plan, gains = read(folder, "plan.json"), read(folder, "gains.json")["objectives"]["memory"]
    assert plan["strategy"] == method
    assert gains["cost"] - plan["predicted"]["gain"] <= 0.85 * gains["cost"]
    values = read(folder, f"{method}.json")["values"]["fp8_e4m3"]
    gain = {group["ops"][0]: group["gain"][-1] for group in gains["groups"]}
    lowered = {op for op, format_name in plan["formats"].items() if format_name != "fp32"}
    free = {op for op in values if gain[op] > 0}
    # No single exchange of a lowered op for a kept one is better: a necessary condition of the optimum.
    for op in lowered:
        for kept in free - lowered:
            if plan["predicted"]["gain"] - gain[op] + gain[kept] >= 0.15 * gains["cost"]:
                assert values[kept] >= values[op] - 1e-12


def test_equal_gain_by_three_prices(folder):
    plans = {}
    for method in ("ip_mse", *METHODS):
        assert call("solve", folder, f"strategy={method}", "gain_fraction=0.5").exit_code == 0
        plans[method] = read(folder, "plan.json")["predicted"]
    assert all(plan["gain"] >= plans["ip_mse"]["gain"] * 0.99 for plan in plans.values())
    assert plans["ip_mse"]["loss_mse"] <= min(plan["loss_mse"] for plan in plans.values())


@pytest.mark.parametrize("method", METHODS)
def test_a_recipe_with_a_threshold_needs_one_key_changed(folder, method):
    result = call("solve", folder, f"strategy={method}", "tau=0.00012")
    assert result.exit_code == 0, result.output
    plan = read(folder, "plan.json")
    assert 0 < plan["predicted"]["nrmse"] <= 0.00012
    assert plan["solver"]["status"] == "not optimised: ops by value per gain"


def test_files_and_validation_are_those_of_any_plan(folder):
    assert call("solve", folder, "strategy=alps", "gain_fraction=0.4").exit_code == 0
    assert call("emit", folder, "--target", "cpu-qdq").exit_code == 0
    checked = call("check", folder / "configs" / "cpu-qdq.json", "--modules", folder / "graph.json")
    assert checked.exit_code == 0, checked.output
    assert load_captured(folder / "graph.json", None)
    validated = call("validate", folder)
    assert validated.exit_code == 0
    assert "predicted; held to no tau" in " ".join(validated.output.split())
    assert call("report", folder).exit_code == 0
    page = (folder / "report.html").read_text()
    assert "the plan was asked for a gain" in page
    assert "strategy alps" in page
    assert f"inc-mp solve {folder} gain_fraction=0.4" in page


@pytest.mark.slow
def test_methods_are_measured_at_equal_gain(folder):
    result = call("experiment", folder, "methods")
    assert result.exit_code == 0, result.output
    experiment = read(folder, "experiments/methods-memory.json")
    baselines = {"prefix", "random", "ends", "practice", "uniform"}
    assert {trial["strategy"] for trial in experiment["trials"]} == {"ip_mse", *METHODS, *baselines}
    for trial in experiment["trials"]:
        assert trial["gain"] >= trial["level"] * experiment["largest_gain"] * (1 - 1e-12)
        assert trial["measured"] is not None
    assert call("report", folder).exit_code == 0
    assert (folder / "figures" / "methods-memory.svg").exists()


def test_an_interrupt_loses_no_value(project, valued, tmp_path, monkeypatch):
    keys = ["tune", project / "recipe.yaml", "strategy=alps", "budget=0.8", "--out", tmp_path]
    stock, calls = alps.sample_losses, []

    def interrupted(*arguments):
        calls.append(arguments)
        if len(calls) == 30:  # in the second batch
            raise KeyboardInterrupt
        return stock(*arguments)

    monkeypatch.setattr(alps, "sample_losses", interrupted)
    assert call(*keys).exit_code == 1
    monkeypatch.setattr(alps, "sample_losses", stock)
    result = call(*keys)
    assert result.exit_code == 0, result.output
    assert "going on after" in result.output
    assert read(tmp_path, "alps.json")["values"] == read(valued, "alps.json")["values"]


def test_values_of_other_data_do_not_count(project, folder):
    changes = ["calibration.samples=4", "validation=null"]
    assert call("tune", project / "recipe.yaml", *changes, "--out", folder).exit_code == 0
    result = call("solve", folder, "strategy=alps", "budget=0.9")
    assert result.exit_code == 2
    told = " ".join(result.output.split())
    assert "alps.json is out of date (calibration.samples was 4, is 6)" in told
    assert "strategy=alps --out" in told


@pytest.mark.parametrize(
    ("changes", "code", "said"),
    [
        (["strategy=eagl", "budget=0.1"], 3, "the least budget that can be met is 0."),
        (["budget=2"], 2, "override budget=2: input should be less than or equal to 1"),
        (["budget=0.9", "gain_fraction=0.5"], 2, "give one"),
        (["strategy=random", "budget=0.9"], 2, "held to a threshold: give kl or tau"),
        (["strategy=egal", "budget=0.9"], 2, "override strategy=egal: input should be 'ip_mse'"),
        (["strategy=alps", "budget=0.9", "confidence=0.9"], 2, "goes with no other strategy"),
    ],
    ids=["too small", "above 1", "two knobs", "a baseline", "unknown", "confidence"],
)
def test_mistakes(folder, changes, code, said):
    result = call("solve", folder, *changes)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.output.split())


def test_values_that_were_never_measured(folder):
    (folder / "eagl.json").unlink()
    result = call("solve", folder, "strategy=eagl", "budget=0.9")
    assert result.exit_code == 2
    assert "strategy eagl needs values of its own" in " ".join(result.output.split())


def test_integers_are_no_format_of_a_recipe(project, tmp_path):
    result = call("tune", project / "recipe.yaml", "formats=[int8]", "--out", tmp_path / "run")
    assert result.exit_code == 2
    assert "int8 is an integer" in " ".join(result.output.split())


def test_bit_operations_are_an_objective(project, finished, tmp_path):
    keys = ["objective=bit_operations", "budget=0.5", "validation=null", "targets=[cpu-qdq]"]
    result = call("tune", project / "recipe.yaml", *keys, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    gains, graph = read(tmp_path, "gains.json")["objectives"]["bit_operations"], read(tmp_path, "graph.json")
    assert gains["cost"] == 1024 * sum(op["macs"] for op in graph["ops"])
    assert read(tmp_path, "plan.json")["predicted"]["gain"] >= 0.5 * gains["cost"]
    assert "BOP" in result.output


@pytest.mark.parametrize("method", METHODS)
def test_models_in_memory(method, tmp_path):
    model = helpers.language_model("llama")
    before = helpers.state(model)
    plan = mp.tune(model, BATCHES, strategy=method, budget=0.8, out=tmp_path)
    assert plan.strategy == method
    assert plan.quantized
    helpers.assert_same_state(before, helpers.state(model))
