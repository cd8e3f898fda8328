"""Weights that stay in their files in another format, and are cast as their modules run: the same results."""

import helpers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from inc_mp_plugin.libraries.accelerate import is_dispatched
from inc_mp_plugin.model.checkpoint import is_cast
from inc_mp_plugin.model.loading import load_model

IN_BF16 = ["model.dtype=bf16", "validation=null", "kl=0.001"]


@helpers.since_5
def test_a_recipe_in_another_format_has_the_sensitivities_of_a_cast_model(project, tmp_path):
    """The files are in FP32. `high` casts the whole model, `low` a weight when its module runs."""
    for memory in ("high", "low"):
        changes = [*IN_BF16, "noise=measured", f"run.memory={memory}", "--out", tmp_path / memory]
        result = helpers.call("tune", project / "recipe.yaml", *changes)
        assert result.exit_code == 0, result.output
        assert ("each is cast to bf16 when its module runs" in helpers.told(result)) == (memory == "low")
    high, low = (np.load(tmp_path / memory / "sensitivity.npz") for memory in ("high", "low"))
    assert high.files == low.files
    for name in high.files:
        np.testing.assert_array_equal(low[name], high[name], err_msg=name)


@helpers.since_5
def test_weights_are_there_in_their_module_alone_and_logits_are_those_of_a_cast_model(project):
    folder, batch = str(project / "model"), {"input_ids": torch.arange(12)[None]}
    whole = load_model(folder, "bf16", trust_remote_code=False)
    model = load_model(folder, "bf16", trust_remote_code=False, cast_as_used=True)
    seen = []
    down = model.model.layers[0].mlp.down_proj
    own = down._old_forward
    down._old_forward = lambda x: seen.append([p.device.type for p in model.parameters()]) or own(x)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, whole(**batch).logits)
    assert [kinds.count("cpu") for kinds in seen] == [1]
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@helpers.since_5
def test_stacked_experts_are_cast_as_a_whole(tmp_path):
    helpers.mixture("qwen3_moe").save_pretrained(tmp_path)
    model = load_model(str(tmp_path), "bf16", trust_remote_code=False, cast_as_used=True)
    assert not is_dispatched(model)
    assert model.lm_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("changes", "through"),
    [
        (["run.memory=low"], "hooks"),
        (["run.memory=low", "validation.through=inc"], "auto"),
        (["run.memory=low", "model.dtype=fp32"], "auto"),
        ([], "auto"),
    ],
)
@helpers.since_5
def test_what_needs_the_whole_model_gets_it(project, changes, through):
    from inc_mp_plugin.pipeline.data import heldout_of
    from inc_mp_plugin.pipeline.recipe import load_recipe

    recipe = load_recipe(project / "recipe.yaml", ["model.dtype=bf16", *changes])
    assert heldout_of(recipe).through == recipe.validation.through.replace("auto", through)


def test_the_format_of_most_weights_counts(tmp_path):
    weights = {"norm": torch.ones(4), "layer": torch.ones(4, 4).bfloat16(), "codes": torch.ones(3).byte()}
    save_file(weights, tmp_path / "model.safetensors")
    assert [is_cast(str(tmp_path), dtype) for dtype in ("fp32", "bf16", "fp16")] == [True, False, True]
    assert not is_cast(str(tmp_path / "none"), "fp32")
