"""Folders of a dry run: what they lack is said, and a plan is never overwritten by one."""

import json
import re
import shutil

import pytest
from helpers import call, read, told

from inc_mp_plugin.pipeline.recipe import load_recipe
from inc_mp_plugin.pipeline.tune import dry_run


@pytest.fixture(scope="module")
def rehearsed(project, tmp_path_factory):
    """A folder of a dry run."""
    folder = tmp_path_factory.mktemp("folder") / "its-dry-run"
    dry_run(load_recipe(project / "recipe.yaml", []), folder)
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ["emit", "{folder}", "--target", "vllm-gaudi"],
        ["solve", "{folder}", "tau=1"],
        ["validate", "{folder}"],
        ["validate", "{folder}", "--time"],
        ["report", "{folder}"],
        ["frontier", "{folder}"],
        ["experiment", "{folder}", "choices"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_dry_run_has_nothing_to_plan_from(rehearsed, arguments):
    before = {path: path.read_bytes() for path in rehearsed.rglob("*") if path.is_file()}
    result = call(*(rehearsed if argument == "{folder}" else argument for argument in arguments))
    assert result.exit_code == 2
    assert f"{rehearsed.name} is of a dry run, without sensitivities" in told(result).replace("- ", "-")
    assert "run `inc-mp tune RECIPE.yaml` without --dry-run" in told(result)
    assert {path: path.read_bytes() for path in rehearsed.rglob("*") if path.is_file()} == before


def test_a_dry_run_says_so_in_its_scripts(rehearsed):
    lowered = len(
        json.loads((rehearsed / "configs" / "optimum-habana.json").read_text())["allowlist"]["names"]
    )
    assert lowered
    script = (rehearsed / "configs" / "optimum-habana.sh").read_text()
    ops = len(read(rehearsed, "graph.json")["ops"])
    assert re.search(
        rf"# largest gain, whatever its loss: \d+ of {ops} ops in FP8, objective memory\n", script
    )


def test_a_dry_run_does_not_overwrite_a_plan(project, run_folder):
    folder = run_folder
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = call("tune", project / "recipe.yaml", "--dry-run", "--out", folder)
    assert result.exit_code == 2
    assert "holds a plan, whose files a dry run would replace; give another folder" in told(result)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_tune_takes_the_folder_of_a_dry_run_over(project, rehearsed, tmp_path):
    folder = shutil.copytree(rehearsed, tmp_path / "run")
    assert call("tune", project / "recipe.yaml", "validation=null", "--out", folder).exit_code == 0
    assert not (folder / "dry-run.json").exists()
    assert call("solve", folder).exit_code == 0


@pytest.mark.parametrize(
    ("changes", "gain"),
    [
        (["objective=bit_operations"], r"bit_operations, exact\): [\d.]+ [GMk]?BOP"),
        (["objective=memory"], r"memory, exact\): [\d.]+ [GMk]B"),
        (
            ["objective=roofline", "model.dtype=bf16", "targets=[vllm-gaudi]"],
            r"roofline, modelled\): [\d.]+ [mun]?s",
        ),
        (
            ["objective=memory", "model.dtype=bf16", "targets=[vllm-gaudi]", "kv_cache=fp8"],
            r"memory, exact\): [\d.]+ [GMk]B",
        ),
        (["strategy=eagl", "budget=0.7"], r"memory, exact\): [\d.]+ [GMk]B"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_unit_of_a_gain_is_shown(project, tmp_path, changes, gain):
    result = call("tune", project / "recipe.yaml", "--dry-run", *changes, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert re.search(rf"Largest gain \({gain} with \d+ ops lowered", told(result))
