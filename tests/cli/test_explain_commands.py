"""`inc-mp explain` and `inc-mp diff` on the small model, against plans that are made again."""

import json
import re
import shutil

import pytest
from helpers import call, read, told

from inc_mp_plugin.pipeline.explain import named_op


def plan_formats(folder):
    return read(folder, "plan.json")["formats"]


def lowered(folder):
    return {op for op, name in plan_formats(folder).items() if name != "fp32"}


@pytest.mark.parametrize("knob", ["tau", "gain_fraction"])
def test_an_op_is_lowered_at_the_threshold_that_is_named(finished, run_folder, knob):
    """Each op of the tables: `inc-mp solve` with the threshold of its corner lowers it."""
    if knob != "tau":
        assert call("solve", run_folder, f"{knob}=0.4").exit_code == 0
    before = (run_folder / "plan.json").read_bytes()
    result = call("explain", run_folder)
    assert result.exit_code == 0, result.output
    rows = [line.split("│") for line in result.output.splitlines() if line.startswith("│ model.")]
    assert len(rows) > 4
    for _, op, *_, entry, _ in rows:
        value = re.search(rf"{knob} (\S+)", entry)[1]
        assert call("solve", run_folder, f"{knob}={value}").exit_code == 0
        assert op.strip() in lowered(run_folder)
    (run_folder / "plan.json").write_bytes(before)


def test_an_op_on_the_other_side_gives_the_gain_that_is_named(run_folder):
    """Forced by hand: without the op among those that may leave the base format, `solve` gains that much."""
    op = sorted(lowered(run_folder))[0]
    said = told(call("explain", run_folder, op))
    gain = float(re.search(r"would gain ([\d.]+) % instead of", said)[1])
    recipe = read(run_folder, "recipe.json")
    others = [name for name in plan_formats(run_folder) if name != op]
    del recipe["sha256"]
    (run_folder / "recipe.json").write_text(json.dumps({**recipe, "ops": others}))
    assert call("solve", run_folder).exit_code == 0
    plan = read(run_folder, "plan.json")
    assert op not in lowered(run_folder)
    largest = sum(max(g["gain"]) for g in read(run_folder, "gains.json")["objectives"]["memory"]["groups"])
    assert gain == pytest.approx(100 * plan["predicted"]["gain"] / largest, abs=0.01)


def test_names_of_ops():
    ops = ["layers.0.q", "layers.1.q", "head"]
    assert named_op("head", ops) == "head"
    assert named_op("1.q", ops) == "layers.1.q"
    with pytest.raises(ValueError, match="'q' is the end of 2 names: layers.0.q, layers.1.q; give more"):
        named_op("q", ops)
    with pytest.raises(ValueError, match="no op is called 'hed'; near are head"):
        named_op("hed", ops)


def test_what_is_explained_needs_no_model(finished, tmp_path):
    folder = tmp_path / "alone"
    folder.mkdir()
    for stem in ("graph.json", "gains.json", "sensitivity.json", "sensitivity.npz", "plan.json"):
        shutil.copy(finished / stem, folder)
    recipe = read(finished, "recipe.json")
    del recipe["sha256"]
    recipe["model"]["name_or_path"] = recipe["calibration"]["data"] = "gone"
    (folder / "recipe.json").write_text(json.dumps(recipe))
    op = next(iter(plan_formats(folder)))
    assert call("explain", folder, op).exit_code == 0
    assert call("explain", folder).exit_code == 0


def test_another_threshold_is_named_with_the_ops_that_moved(finished, run_folder):
    assert call("solve", run_folder, "tau=0.0002").exit_code == 0
    result = call("diff", finished, run_folder)
    assert result.exit_code == 0, result.output
    said = told(result)
    assert "Plan: tau was 0.00012, is 0.0002." in said
    assert "All prices are the same." in said
    moved = lowered(run_folder) - lowered(finished)
    assert moved
    assert f"alone ({len(moved)}); a gain per price of 1 is the edge:" in said
    assert moved <= set(re.findall(r"[\w.]+", said))
    assert "would have moved" not in said
    assert "No op moved." in told(call("diff", finished, finished))


def test_other_samples_and_another_threshold_are_told_apart(project, finished, tmp_path):
    other = tmp_path / "other"
    changed = ("calibration.samples=3", "tau=0.0003", "validation=null")
    assert call("tune", project / "recipe.yaml", *changed, "--out", other).exit_code == 0
    said = told(call("diff", finished, other))
    assert "Sensitivities: calibration.samples was 6, is 3." in said
    assert "Plan: sensitivity has changed; tau was 0.00012, is 0.0003." in said
    by_data, by_threshold = map(
        int, re.search(r", (\d+) ops would .* threshold moves (\d+)\.", said).groups()
    )
    assert re.search(r"Prices of 19 ops, then over before: median [\d.]+, from [\d.]+ to [\d.]+\.", said)
    after = lowered(other)
    assert call("solve", other, "tau=0.00012").exit_code == 0
    between = lowered(other)
    assert (by_data, by_threshold) == (len(lowered(finished) ^ between), len(between ^ after))


def test_plans_of_different_models_are_refused(finished, tmp_path):
    other = shutil.copytree(finished, tmp_path / "other")
    plan = read(other, "plan.json")
    del plan["sha256"]
    plan["formats"] = {f"another.{op}": name for op, name in plan["formats"].items()}
    (other / "plan.json").write_text(json.dumps(plan))
    result = call("diff", finished, other)
    assert result.exit_code == 2
    assert "have no op in common: they are of different models" in told(result)
