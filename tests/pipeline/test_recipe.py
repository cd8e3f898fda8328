"""Recipes: strict, with every fault reported together."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import FORMATS
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.model.data.samples import read_samples
from inc_mp_plugin.model.data.source import DataSource, Excerpt
from inc_mp_plugin.pipeline.recipe import Recipe, load_recipe, parse_recipe
from inc_mp_plugin.pipeline.sections import Dtype

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def content(**changes):
    return {
        "model": {"name_or_path": "somewhere"},
        "calibration": {"data": "data.jsonl"},
        "tau": 0.01,
        **changes,
    }


def test_shipped_recipes_are_valid():
    assert RECIPES
    for path in RECIPES:
        load_recipe(path, [])


def test_closed_sets_are_those_of_the_package():
    assert set(get_args(Dtype)) <= FORMATS.keys()
    assert set(get_args(Recipe.model_fields["device"].annotation)) == ACCELERATORS.keys()


def test_all_faults_at_once_with_suggestions(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        yaml.safe_dump(
            content(
                taw=0.1,
                objective="speed",
                model={"name_or_path": "x", "dtyp": "fp32"},
                calibration={"data": "x", "samples": 0},
            )
        )
    )
    with pytest.raises(InputError) as error:
        load_recipe(path, [])
    lines = str(error.value).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(str(path)) for line in lines)
    assert any("unknown key 'taw'; did you mean 'tau'?" in line for line in lines)
    assert any("unknown key 'model.dtyp'; did you mean 'dtype'?" in line for line in lines)
    assert any("objective is 'speed'" in line for line in lines)
    assert any("calibration.samples is 0: input should be greater than 0" in line for line in lines)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tau": -1}, "tau is -1"),
        ({"tau": float("nan")}, "finite"),
        ({"tau": None}, "give kl"),
        ({"gain_fraction": 2.0}, "gain_fraction is 2.0"),
        ({"formats": ["fp8"]}, "unknown format 'fp8'"),
        ({"formats": ["fp32"]}, "not coarser"),
        ({"targets": ["tpu"]}, "unknown target 'tpu'"),
        ({"validation": {"data": "data.jsonl"}}, "held-out samples must be others"),
        ({"strategy": "prefixes"}, "strategy is 'prefixes'"),
        ({"strategy": "random", "tau": None, "gain_fraction": 0.5}, "held to a threshold: give kl or tau"),
        ({"strategy": "prefix", "tau": 0.1, "budget": 0.5}, "neither gain_fraction nor budget"),
        (
            {"kl": 0.1, "confidence": 0.9, "run": {"estimator": "batch"}},
            r"confidence of a kl needs at least 16 batches, and calibration has \d+; give more",
        ),
        ({"run": {"memory": "small"}}, "run.memory is 'small'"),
        ({"run": {"parallel": "ddp"}}, "run.parallel is 'ddp': input should be 'samples' or 'fsdp'"),
        ({"strategy": "prefix", "confidence": 0.9}, "goes with no other strategy"),
        ({"verify_confidence": 95}, "verify_confidence is 95"),
        ({"confidence": 95}, "confidence is 95"),
        ({"noise": "loud"}, "noise is 'loud'"),
        ({"scale_method": "maxabs"}, "unknown scale_method of target cpu-qdq 'maxabs'; did you mean"),
        ({"scale_method": "maxabs_hw"}, "unknown scale_method of target cpu-qdq 'maxabs_hw'"),
        ({"targets": ["optimum-habana"], "scale_method": "maxabs_hv"}, "did you mean 'maxabs_hw'"),
        ({"noise": "measured", "targets": []}, "give an FP8 target first"),
        (
            {
                "noise": "measured",
                "targets": ["cpu-bf16"],
                "formats": ["bf16"],
                "model": {"name_or_path": "somewhere", "dtype": "fp32"},
            },
            "give an FP8 target first",
        ),
        ({"verify": True}, "give kl or tau, and validation: {data: HELDOUT.jsonl}"),
        (
            {"verify": True, "validation": {"data": "heldout.jsonl", "samples": 7}},
            "validation.samples is 7; verify needs at least 8 to say how far",
        ),
        ({"model": {}}, "'model.name_or_path' is missing"),
        ({"targets": ["cpu-qdq", "vllm-gaudi", "cpu-qdq"]}, "targets: cpu-qdq is given more than once"),
        ({"targets": None}, r"targets is empty: it must be a list, such as \[cpu-qdq\]"),
        ({"formats": None}, r"formats is empty: it must be a list, such as \[fp8_e4m3\]"),
        ({"reuse_cache": "maybe"}, "reuse_cache is 'maybe': it must be true or false"),
        ({"reuse_cache": None}, "reuse_cache is empty: it must be true or false"),
        (
            {
                "verify": True,
                "validation": {"data": "heldout.jsonl"},
                "kv_cache": "fp8",
                "targets": ["vllm-gaudi"],
            },
            "there is no KV cache: kv_cache: fp8 would go unmeasured; give verify: false, or kv_cache: bf16",
        ),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(InputError, match=message):
        parse_recipe(content(**changes), [], "recipe")


def test_confidence_may_stand_beside_verify():
    keys = {"verify": True, "confidence": 0.9, "validation": {"data": "heldout.jsonl"}}
    recipe = parse_recipe(content(**keys), ["verify_confidence=0.8"], "recipe")
    assert (recipe.confidence, recipe.verify_confidence) == (0.9, 0.8)
    assert parse_recipe(content(**keys), [], "recipe").verify_confidence == 0.95


def test_overrides():
    recipe = parse_recipe(content(), ["calibration.samples=7", "tau=1e-3"], "recipe")
    assert (recipe.calibration.samples, recipe.tau) == (7, 0.001)
    dual = parse_recipe(content(), ["gain_fraction=0.5"], "recipe")
    assert (dual.tau, dual.gain_fraction) == (None, 0.5)
    both = parse_recipe(content(), ["gain_fraction=0.5", "tau=0.1"], "recipe")
    assert (both.tau, both.gain_fraction) == (0.1, 0.5)


@pytest.mark.parametrize(
    ("changes", "overrides", "lines"),
    [
        ({}, ["tau=-1"], ["override tau=-1: input should be greater than 0"]),
        ({"tau": -1}, ["seed=2"], ["file: tau is -1: input should be greater than 0"]),
        (
            {"formats": ["fp9"]},
            ["tau=x", "targets=[a]"],
            [
                "file: formats: unknown format 'fp9'",
                "override tau=x: input should be a valid number",
                "override targets=[a]: unknown target 'a'",
            ],
        ),
        ({}, ["tau=1", "tau=0"], ["override tau=0: input should be greater than 0"]),
        ({}, ["calibration.samples=0"], ["override calibration.samples=0: input should be greater than 0"]),
        (
            {},
            ["calibration={data: x, samples: 0}"],
            ["override calibration={data: x, samples: 0}: calibration.samples is 0: "],
        ),
        ({}, ["kv_cache=fp8", "seed=2"], ["file with kv_cache=fp8: kv_cache: fp8 is of Gaudi"]),
        ({"kv_cache": "fp8"}, ["seed=2"], ["file: kv_cache: fp8 is of Gaudi"]),
        (
            {},
            ["model.config={a: 1}", "model.dtype=bf16"],
            ["file with model.config={a: 1}: model: config changes the model's shape"],
        ),
    ],
)
def test_a_fault_names_the_override_that_made_it(changes, overrides, lines):
    with pytest.raises(InputError) as error:
        parse_recipe(content(**changes), overrides, "file")
    faults = str(error.value).splitlines()
    assert len(faults) == len(lines)
    assert all(any(line.startswith(start) for line in faults) for start in lines), faults


@pytest.mark.parametrize("override", ["tau", "=1", "tau.x=1", "tau=[", "calibration.sampels=3"])
def test_malformed_overrides(override):
    with pytest.raises(InputError):
        parse_recipe(content(), [override], "recipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "cannot be read"), ("just text", "not a mapping"), (None, "does not exist")],
)
def test_unreadable_files(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(path, [])


def test_a_folder_is_no_recipe(tmp_path):
    with pytest.raises(InputError, match=f"recipe {tmp_path} is a folder; give its YAML file"):
        load_recipe(tmp_path, [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "does not exist"),
        ("", "holds 0 samples, 2 are asked for"),
        ('{"text": "a"}\n', "holds 1 samples"),
        ('{"text": "a"}\nnot json\n', "line 2: not JSON"),
        ('{"text": "a"}\n{"txt": "b"}\n', 'line 2: not an object with a "text"'),
    ],
)
def test_unreadable_data(tmp_path, text, message):
    path = tmp_path / "data.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_samples(Excerpt(DataSource(path), 2))


def test_relative_paths_are_beside_the_recipe_or_in_the_working_folder(tmp_path, monkeypatch):
    """The recipe stands in another folder; a file that is in both is that beside it."""
    beside, working = tmp_path / "recipes", tmp_path / "work"
    for folder in (beside / "model", working):
        folder.mkdir(parents=True)
    for path in (beside / "both.jsonl", working / "both.jsonl", working / "here.jsonl"):
        path.write_text("")
    recipe = {
        "model": {"name_or_path": "model", "dtype": "fp32"},
        "calibration": {"data": "both.jsonl"},
        "validation": {"data": "here.jsonl"},
        "tau": 0.1,
    }
    (beside / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(working)
    loaded = load_recipe(Path("../recipes/recipe.yaml"), [])
    assert Path(loaded.model.name_or_path).resolve() == beside / "model"
    assert loaded.calibration.data.resolve() == beside / "both.jsonl"
    assert loaded.validation.data.resolve() == working / "here.jsonl"
    # What the command line says is of the folder that it is typed in.
    loaded = load_recipe(beside / "recipe.yaml", ["calibration.data=both.jsonl"])
    assert loaded.calibration.data.resolve() == working / "both.jsonl"
