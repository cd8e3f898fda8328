"""Artefacts of older versions: a folder of 0.1.0 is usable, and a stage is redone for its own change only."""

import json
import shutil
from pathlib import Path

import helpers
import pytest
from helpers import call, read

from inc_mp_plugin.runtime import reuse as stage
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.reuse import ARITHMETIC, changes, numbered, partial, run_stage

# Written by version 0.1.0 from `helpers.small_project`.
OLD = Path(__file__).parents[1] / "data" / "run-0.1.0"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(OLD, tmp_path / "run")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    return helpers.small_project(tmp_path_factory.mktemp("older"))


@pytest.fixture(scope="module")
def finished(project):
    result = call("tune", project / "recipe.yaml", "--out", project / "finished")
    assert result.exit_code == 0, result.output
    return project / "finished"


def as_older(folder):
    """Give a folder the dependencies that version 0.1.0 wrote: its version, and no numbers."""
    for path in folder.glob("*.json"):
        content = json.loads(path.read_text())
        made = content.get("depends_on")
        if made is None:
            continue
        del made["arithmetic"], content["made_by"], content["sha256"]
        if "versions" in made:
            made["versions"]["inc-mp-plugin"] = "0.1.0"
        if path.stem in ("plan", "gains"):
            made["version"] = "0.1.0"
        store.write_artefact(path, path.stem, content)


def test_commands_without_the_model(folder):
    result = call("solve", folder)
    assert "making plan.json again: made by an older version of this stage\n" in result.output
    for arguments in (
        ["solve", folder, "tau=0.00005"],
        ["emit", folder, "--target", "optimum-habana"],
        ["frontier", folder, "--points", 3, "--draws", 1],
        ["experiment", folder, "choices"],
        ["report", folder],
    ):
        result = call(*arguments)
        assert result.exit_code == 0, result.output
    assert "0.1.0" in (folder / "report.html").read_text()


def test_validate_in_an_older_folder(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    as_older(folder)
    result = call("validate", folder)
    assert result.exit_code == 0, result.output
    assert "making validation.json again: made by an older version of this stage\n" in result.output
    assert read(folder, "validation.json")["plan"] == read(finished, "validation.json")["plan"]


def test_tune_redoes_what_has_changed_since(project, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    as_older(folder)
    result = call("tune", project / "recipe.yaml", "--out", folder)
    assert result.exit_code == 0, result.output
    for name in ("sensitivity", "plan", "validation"):
        assert f"making {name}.json again: made by an older version of this stage\n" in result.output
    for name in ("graph", "gains"):
        assert f"{name}.json: still valid, reused" in result.output
    assert read(folder, "sensitivity.json") == read(finished, "sensitivity.json")


@pytest.mark.parametrize(
    ("kind", "redone"),
    [("gains", {"gains"}), ("plan", {"plan"}), ("losses", {"validation"}), ("validation", {"validation"})],
)
def test_a_number_redoes_its_stage_alone(project, finished, tmp_path, monkeypatch, kind, redone):
    folder = shutil.copytree(finished, tmp_path / "run")
    monkeypatch.setitem(stage.ARITHMETIC, kind, ARITHMETIC[kind] + 1)
    result = call("tune", project / "recipe.yaml", "--out", folder)
    assert result.exit_code == 0, result.output
    stages = {"graph", "sensitivity", "gains", "plan", "validation"}
    again = {name for name in stages if f"making {name}.json again: made by an older" in result.output}
    assert again == redone
    assert result.output.count("still valid, reused") == len(stages - redone)


def test_what_a_newer_version_made_is_said_to_be_newer():
    assert (
        changes(numbered("plan", {}), {"arithmetic": {"plan": 1}}) == "made by a newer version of this stage"
    )
    assert changes({"arithmetic": {"plan": 1}, "tau": 1}, {"arithmetic": {"plan": 2}, "tau": 2}) == (
        "made by an older version of this stage; tau was 1, is 2"
    )


def test_the_version_of_the_package_changes_nothing(tmp_path, monkeypatch):
    made = []

    def make():
        made.append(1)
        return made, {}

    def run():
        run_stage(tmp_path / "x.json", "gains", {"a": 1}, decode=dict, make=make)

    run()
    assert read(tmp_path, "x.json")["made_by"].startswith("inc-mp-plugin ")
    monkeypatch.setattr("inc_mp_plugin.runtime.reuse.metadata.version", lambda name: "99")
    run()
    assert made == [1]


def test_what_an_interrupt_left_counts_for_the_same_arithmetic_only(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    partial(path, "timing", {"a": 1}).save({"kept": [1.0]})
    assert partial(path, "timing", {"a": 1}).load()
    monkeypatch.setitem(stage.ARITHMETIC, "timing", ARITHMETIC["timing"] + 1)
    assert partial(path, "timing", {"a": 1}).load() == {}


def test_noise_that_is_not_measured_again_is_not_kept(project, tmp_path):
    """Sensitivities made anew for a model of the noise hold no rounding errors, and do not say so."""
    keys = ["tune", project / "recipe.yaml", "validation=null", "--out", tmp_path]
    assert call(*keys, "noise=measured").exit_code == 0
    assert read(tmp_path, "sensitivity.json")["measured_rounding"] == ["fp8_e4m3"]
    assert call(*keys, "calibration.samples=4").exit_code == 0
    assert "noise.method" not in read(tmp_path, "sensitivity.json")["depends_on"]
    result = call(*keys, "calibration.samples=4", "noise=measured")
    assert result.exit_code == 0, result.output
    assert read(tmp_path, "sensitivity.json")["measured_rounding"] == ["fp8_e4m3"]
