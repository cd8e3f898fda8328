"""Commands that messages name: following them gives the plan that was meant."""

import shlex
from pathlib import Path

import pytest

from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.pipeline.next_command import PLAN_KEYS, solve_command, solve_overrides
from inc_mp_plugin.pipeline.recipe import parse_recipe

STORED = {
    "model": {"name_or_path": "somewhere"},
    "calibration": {"data": "data.jsonl"},
    "tau": 0.01,
    "targets": ["optimum-habana"],
}


def values(recipe):
    return {key: getattr(recipe, key) for key in PLAN_KEYS}


@pytest.mark.parametrize(
    "made_with",
    [
        [],
        ["tau=0.02"],
        ["tau=1e-5"],
        ["gain_fraction=0.9"],
        ["gain_fraction=0.9", "tau=0.01"],
        ["objective=roofline", "seed=3", "strategy=random"],
        ["noise=log_uniform", "confidence=0.9", "tau=0.5"],
        ["targets=[cpu-qdq, optimum-habana]", "kv_cache=fp8", "attention=flash", "reuse_cache=true"],
    ],
    ids=lambda overrides: " ".join(overrides) or "nothing",
)
@pytest.mark.parametrize(
    "changes",
    [{}, {"targets": ("optimum-habana", "vllm-gaudi")}, {"attention": "flash", "reuse_cache": True}],
    ids=["as it is", "one more target", "served otherwise"],
)
@pytest.mark.parametrize(
    "stored", [STORED, {**STORED, "gain_fraction": 0.5, "confidence": 0.8}], ids=["tau", "both knobs"]
)
def test_a_recipe_with_the_overrides_is_the_one_that_was_meant(stored, made_with, changes):
    """The oracle is the parser of recipes: read back, every key has the value of the plan or the change."""
    recipe = parse_recipe(dict(stored), [], "here")
    if "confidence" in stored and "strategy=random" in made_with:
        made_with = [*made_with, "confidence=null"]
    if "strategy=random" in made_with:
        made_with = [*made_with, "tau=0.03"]
    planned = values(parse_recipe(dict(stored), made_with, "here"))
    command = solve_command(Path("my runs/it's"), solve_overrides(values(recipe), planned, changes))
    program, what, folder, *overrides = shlex.split(command)
    assert (program, what, folder) == ("inc-mp", "solve", "my runs/it's")
    assert values(parse_recipe(dict(stored), overrides, "here")) == {**planned, **changes}


def test_only_what_differs_is_said():
    stored = values(parse_recipe(dict(STORED), [], "here"))
    assert solve_overrides(stored, stored, {}) == []
    assert solve_overrides(stored, {**stored, "seed": 4}, {"kv_cache": "fp8"}) == ["seed=4", "kv_cache=fp8"]


@pytest.mark.parametrize("value", [0.1, 1 / 3, 2e-7, 0.0022851167, 12345.678])
@pytest.mark.parametrize("digits", [3, 5, 6])
def test_rounding_goes_up_and_not_far(value, digits):
    rounded = float(rounded_up(value, digits))
    assert value <= rounded <= value * (1 + 10.0 ** (1 - digits))
