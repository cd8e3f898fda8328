"""The recipes for Gaudi, as far as they go without weights: graph, ties, modelled gains, files."""

import json
import re
from pathlib import Path

import pytest
import transformers

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.pipeline.recipe import load_recipe
from inc_mp_plugin.pipeline.tune import dry_run
from inc_mp_plugin.report.dry_run import dry_run_lines

RECIPES = Path(__file__).parent.parent / "recipes"
LONGER = ("llama-3.3-70b", "qwen3-8b", "qwen3-30b-a3b")
MODELS = ("llama-3.1-8b", "llama-3.3-70b", "qwen3-8b", "mixtral-8x7b", "qwen3-30b-a3b")
# Linear modules in a layer beside attention's four, and its two products: by hand.
IN_THE_MLP = {"mixtral-8x7b": 3 * 8, "qwen3-30b-a3b": 3 * 128}
PARAMETERS = {
    "llama-3.1-8b": 8.03e9,
    "llama-3.3-70b": 70.6e9,
    "qwen3-8b": 8.19e9,
    "mixtral-8x7b": 46.7e9,
    "qwen3-30b-a3b": 30.5e9,
}


def recipe_of(model, device, *overrides):
    config = f"model.name_or_path={RECIPES / 'configs' / model}"
    return load_recipe(RECIPES / f"{model}-gaudi.yaml", [config, f"device={device}", *overrides])


def two_layers(model, device, *overrides):
    small = "model.config={num_hidden_layers: 2}"
    return recipe_of(model, device, "model.weights=random", small, *overrides)


def lines_of(found):
    return dry_run_lines(found.graph, found.demands, found.gains, found.plan)


@pytest.mark.parametrize("device", [pytest.param("gaudi2", marks=pytest.mark.slow), "gaudi3"])
@pytest.mark.parametrize(
    "model", [pytest.param(m, marks=pytest.mark.slow if m in LONGER else ()) for m in MODELS]
)
def test_recipes_without_weights(model, device, tmp_path):
    recipe = two_layers(model, device)
    found = dry_run(recipe, tmp_path)
    mlp = IN_THE_MLP.get(model, 3)
    assert len(found.graph.ops) == 2 * (4 + 2 + mlp) + 1
    assert (found.gains.objective, found.gains.source, recipe.device) == ("roofline", "modelled", device)
    assert found.plan.gain > 0
    sizes = sorted(len(tie.ops) for tie in found.demands.ties)
    flash = [2, 2] if "optimum-habana" in recipe.targets else []
    assert sizes == sorted([3, 3, *flash, *([mlp, mlp] if mlp > 3 else [2, 2])])
    for target in recipe.targets:
        for end in (".json", "-measure.json", ".sh"):
            assert (tmp_path / "configs" / f"{target}{end}").stat().st_size > 0
    names = json.loads((tmp_path / "configs" / f"{recipe.targets[0]}.json").read_text())["allowlist"]["names"]
    lowered = [op for op, format_name in found.plan.formats.items() if format_name != "bf16"]
    assert bool(names) == bool(lowered)
    shown = "\n".join(lines_of(found))
    assert f"with {len(lowered)} ops lowered" in shown


@pytest.mark.parametrize("model", MODELS)
def test_configurations_are_those_of_the_published_models(model):
    import torch

    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(RECIPES / "configs" / model)
        empty = transformers.AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in empty.parameters()) == pytest.approx(PARAMETERS[model], rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llama-3.1-8b", "qwen3-30b-a3b"])
def test_whole_models_without_weights(model, tmp_path):
    found = dry_run(recipe_of(model, "gaudi3"), tmp_path)
    layers = {"llama-3.1-8b": 32, "qwen3-30b-a3b": 48}[model]
    assert len(found.graph.ops) == layers * (4 + 2 + IN_THE_MLP.get(model, 3)) + 1


@pytest.mark.slow
def test_what_the_experts_of_a_qwen_come_to_on_optimum_habana(tmp_path):
    found = dry_run(two_layers("qwen3-30b-a3b", "gaudi2", "targets=[optimum-habana]"), tmp_path)
    kept = [
        line for line in lines_of(found) if "768 ops" in line and "INC never measures the experts" in line
    ]
    assert len(kept) == 1
    text = (tmp_path / "configs" / "optimum-habana.json").read_text()
    assert "experts" not in text


def test_a_recipe_that_names_no_model_here(tmp_path):
    with pytest.raises(InputError, match="cannot be loaded"):
        recipe = load_recipe(RECIPES / "qwen3-8b-gaudi.yaml", [f"model.name_or_path={tmp_path}/none"])
        dry_run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*-gaudi.yaml")), ids=lambda path: path.stem)
def test_the_commands_in_a_recipe_name_it(path):
    text = path.read_text()
    assert f"inc-mp tune recipes/{path.name}\n" in text
    (config,) = re.findall(r"model\.name_or_path=(recipes/configs/\S+)", text)
    assert (RECIPES.parent / config / "config.json").exists()
    assert max(map(len, text.splitlines())) <= 120
