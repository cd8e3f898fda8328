"""The accuracy experiment on a small model: scores of every strategy over seeds of perturbed scales."""

import itertools
import math

import helpers
import pytest
from helpers import call, read, told

pytest.importorskip("lm_eval")
TASKS = ["--task", "stdlib_cloze", "--include-path", str(helpers.SHIPPED / "tasks"), "--limit", "6"]


@pytest.fixture
def folder(run_folder):
    return run_folder


def test_scores_of_every_strategy(folder, monkeypatch):
    result = call("experiment", folder, "accuracy", "--draws", 2, *TASKS)
    assert result.exit_code == 0, result.output
    assert "stdlib_cloze" in result.output
    experiment = read(folder, "experiments/accuracy-memory.json")
    names = {"stdlib_cloze/acc", "stdlib_cloze/perplexity"}
    assert experiment["base_scores"].keys() == names
    assert all(trial["scores"].keys() == names for trial in experiment["trials"])
    kinds = {(t["strategy"], t["level"], t["seed"]) for t in experiment["trials"]}
    levels = itertools.product(("ip_mse", "prefix", "random"), (0.35, 0.65, 0.9), (0, 1))
    practice = {kind for kind in kinds if kind[0] == "practice"}  # at its own gain
    assert kinds == {*levels, *practice, ("uniform", 1.0, 0), ("uniform", 1.0, 1)}
    assert [seed for _, _, seed in sorted(practice)] == [0, 1]
    assert all(0 <= trial["kl"]["measured"] < 1 for trial in experiment["trials"])
    # The same plan under other scales scores otherwise.
    everything = [t["scores"] for t in experiment["trials"] if t["strategy"] == "uniform"]
    assert len({scores["stdlib_cloze/perplexity"] for scores in everything}) == 2
    # Answers are counted document by document: their mean change is that of the score.
    for trial in experiment["trials"]:
        change = trial["answers"]["stdlib_cloze"]
        base, score = (s["stdlib_cloze/acc"] for s in (experiment["base_scores"], trial["scores"]))
        assert change["documents"] == 6
        assert change["accuracy"] == pytest.approx(score - base)
        assert change["flips"] >= abs(change["accuracy"])
        words = [s["stdlib_cloze/perplexity"] for s in (trial["scores"], experiment["base_scores"])]
        assert change["margin"] == pytest.approx(-math.log(words[0] / words[1]), abs=1e-6)
        assert change["margin_interval"][0] <= change["margin"] <= change["margin_interval"][1]
    different = {(tuple(t["quantized"]), t["seed"]) for t in experiment["trials"]}
    assert f"accuracy: {len(different)} runs of stdlib_cloze, about " in told(result)
    # What was scored is not scored again.
    (folder / "experiments" / "accuracy-memory.json").unlink()
    monkeypatch.setattr("inc_mp_plugin.experiments.accuracy.evaluate_tasks", None)
    assert call("experiment", folder, "accuracy", "--draws", 2, *TASKS).exit_code == 0
    assert read(folder, "experiments/accuracy-memory.json") == experiment


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no task was given"),
        pytest.param(  # lm-eval reads all its tasks first
            ["--task", "stdlib_close", *TASKS[2:4]],
            "lm-eval has no task 'stdlib_close'; near:",
            marks=pytest.mark.slow,
        ),
        ([*TASKS[:2], "--include-path", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_mistakes(folder, arguments, message):
    result = call("experiment", folder, "accuracy", *arguments)
    assert result.exit_code == 2
    assert message in result.output
