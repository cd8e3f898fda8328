"""KL divergence from the command line: thresholds that are measured, through INC and through hooks."""

import helpers
import numpy as np
import pytest
from helpers import call, read, told

KL = 2e-5
KEYS = ["tau=null", f"kl={KL}", "noise=measured", "validation.samples=8"]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = helpers.small_project(tmp_path_factory.mktemp("kl"))
    lines = (helpers.SHIPPED / "heldout.jsonl").read_text().splitlines()[:16]
    (folder / "heldout.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def finished(project):
    result = call("tune", project / "recipe.yaml", *KEYS, "--out", project / "run")
    assert result.exit_code == 0, result.output
    return project / "run"


def test_the_contract_of_validation_json(finished):
    validation, plan = read(finished, "validation.json"), read(finished, "plan.json")
    assert validation["plan"]["kl"]["predicted"] == pytest.approx(plan["predicted"]["kl"], rel=1e-9)
    points = [validation["plan"], *validation["points"]]
    assert all({"predicted", "measured", "interval"} <= point["kl"].keys() for point in points)
    predicted, measured = np.array([[p["kl"][key] for p in points[1:]] for key in ("predicted", "measured")])
    summary = validation["kl"]
    assert summary["ratio"] == pytest.approx(predicted.sum() / measured.sum())
    assert summary["log_correlation"] == pytest.approx(np.corrcoef(np.log(predicted), np.log(measured))[0, 1])
    assert summary["log_correlation"] > 0.98
    assert 0.7 < summary["ratio"] < 1.4
    assert (summary["threshold"], validation["tau"]) == (KL, None)
    assert 0 <= summary["floor"] < 1e-12  # FP32 against FP32
    assert all(point["predicted"] is None for point in points)  # the loss was not priced
    ran = {key: validation[key] for key in ("through", "points_through", "attention", "dtype")}
    assert ran == {"through": "inc", "points_through": "hooks", "attention": "eager", "dtype": "fp32"}
    assert validation["threads"] >= 1
    for name, count in (("measured_losses", 1), ("measured_losses_hooks", len(points) - 1)):
        arrays = np.load(finished / f"{name}.npz")
        assert sum(key.endswith(" kl") for key in arrays.files) == count
    assert not list(finished.glob("*.partial.npz"))
    assert not list(finished.glob(".base-logits-*"))


def test_through_hooks_through_inc_and_back(finished):
    """The same numbers by other means, each in a file of its own; what was measured before is still there."""
    before, kept = read(finished, "validation.json"), (finished / "measured_losses.npz").read_bytes()
    result = call("validate", finished, "--through", "hooks")
    assert result.exit_code == 0, result.output
    assert "samples through hooks that round as INC does" in told(result)
    hooks = read(finished, "validation.json")
    assert (finished / "measured_losses.npz").read_bytes() == kept
    result = call("validate", finished, "--through", "inc")
    assert "samples through INC" in told(result)
    assert "through hooks" not in told(result)
    inc = read(finished, "validation.json")
    ways = [(ran["through"], ran["points_through"]) for ran in (before, hooks, inc)]
    assert ways == [("inc", "hooks"), ("hooks", None), ("inc", None)]
    assert before["plan"] == inc["plan"] == hooks["plan"]  # bit by bit
    assert before["points"] == hooks["points"] == inc["points"]
    result = call("validate", finished, "--through", "auto")
    assert "samples through INC" in told(result)
    assert "random plans through hooks that round as INC does, of KL, the correlation" in told(result)
    assert read(finished, "validation.json") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--through", "hook"],
            "unknown way to measure 'hook'; did you mean 'hooks'? known: auto, hooks, inc",
        ),
        (["--through", "inc", "--time"], "--through says who measures losses"),
    ],
)
def test_mistakes(finished, options, message):
    result = call("validate", finished, *options)
    assert result.exit_code == 2
    assert message in told(result)


def test_it_is_shown(finished):
    assert call("report", finished).exit_code == 0
    page = (finished / "report.html").read_text()
    shown = told(call("validate", finished))
    for text in ("measured KL is", "most likely word", "perplexity ×", f"kl {KL:g}: held"):
        assert text in page
        assert text in shown
    assert "KL divergence, measured" in page
    assert (finished / "figures" / "validation-kl.svg").exists()
    assert not (finished / "figures" / "validation.svg").exists()  # there is no prediction of the loss


@pytest.mark.parametrize("name", ["choices", "prediction", "curve"])
def test_experiments_where_the_loss_was_not_priced(finished, name):
    """They go by the KL divergence: the least of all that gain as much is the plan's."""
    result = call("experiment", finished, name, "--points", 2, "--draws", 3)
    assert result.exit_code == 0, result.output
    trials = read(finished, f"experiments/{name}-memory.json")["trials"]
    assert all(trial["predicted"] is None and trial["interval"] is None for trial in trials)
    if name == "choices":
        assert {trial["level"] for trial in trials} == {KL}
        assert trials[0]["predicted_kl"] == read(finished, "plan.json")["predicted"]["kl"] <= KL
        return
    assert all(trial["measured"] >= 0 and trial["kl"]["measured"] >= 0 for trial in trials)
    predicted = [trial["kl"]["predicted"] for trial in trials]
    if name == "prediction":
        everything = next(trial for trial in trials if trial["strategy"] == "uniform")
        assert predicted[0] <= trials[0]["level"] ** 2 * everything["kl"]["predicted"] * (1 + 1e-9)
        return
    for level in {trial["level"] for trial in trials}:
        beside = [p for p, trial in zip(predicted, trials, strict=True) if trial["level"] == level]
        assert beside[0] == pytest.approx(min(beside))


def test_a_closed_loop_holds_both(project):
    keys = [*KEYS, "noise=uniform", "tau=0.00006", "kl=0.000002", "verify=true", "validation.through=hooks"]
    result = call("tune", project / "recipe.yaml", *keys, "--out", project / "verified")
    assert result.exit_code == 0, result.output
    loop, plan = read(project / "verified", "verification.json"), read(project / "verified", "plan.json")
    assert (loop["tau"], loop["kl"]) == (0.00006, 0.000002)
    chosen = loop["rounds"][loop["chosen"]]
    assert chosen["ops"] > 0
    assert chosen["interval"][1] <= loop["tau"]
    assert chosen["kl_interval"][1] + loop["floor"] <= loop["kl"]
    assert chosen["predicted_kl"] == plan["predicted"]["kl"]
    assert plan["correction"] == chosen["correction"]
    assert "(tau 6e-05), KL" in told(result)
    assert (project / "verified" / "verified_losses_hooks.npz").exists()
