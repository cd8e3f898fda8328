"""docs/pages/cpu.md, word for word: files in plain INC give the losses that the plugin measured."""

import re
import shutil
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch

from inc_mp_plugin.model.losses import language_model_loss
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.recipe import load_recipe
from inc_mp_plugin.pipeline.tune import tune_recipe

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "pages" / "cpu.md").read_text(), re.DOTALL)
# Of the shipped recipe, and of the test's smaller one.
SIZES = {"file, 64)": "file, 6)", "max_length=256": "max_length=32", "len(texts), 8": "len(texts), 2"}
SIZES["start + 8"] = "start + 2"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder laid out as this repository, with a small project in it."""
    (tmp_path / "project").mkdir()
    project = helpers.small_project(tmp_path / "project")
    model = tmp_path / "recipes" / "tiny-llama"
    shutil.copytree(project / "model", model)
    shutil.copy(project / "calibration.jsonl", model)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_block(number):
    code, names = BLOCKS[number], {}
    for shipped, small in SIZES.items():
        code = code.replace(shipped, small)
    exec(code, names)
    return names["model"]


def test_cpu_qdq_gives_the_measured_losses_bit_for_bit(folder):
    assert all(one in BLOCKS[0] for one in SIZES)
    out = folder / "runs" / "tiny-llama"
    overrides = ["validation.random_plans=3", "targets=[cpu-qdq]"]
    plan = tune_recipe(load_recipe(folder / "project" / "recipe.yaml", overrides), out)
    assert plan.binds and plan.quantized
    model = run_block(0)
    patched = {n for n, m in model.named_modules() if type(m).__name__.startswith("Patched")}
    assert patched == set(plan.quantized)
    meter = Run(out, tuple(overrides)).meter
    with torch.no_grad():
        losses = torch.cat([language_model_loss(model, batch) for batch in meter.heldout])
    measured, base = meter.losses(plan.quantized), meter.losses(())
    assert np.array_equal(losses.double().numpy(), measured)
    assert not np.array_equal(measured, base)


def test_cpu_bf16_needs_no_measuring(folder):
    out = folder / "runs" / "tiny-llama"
    overrides = ["formats=[bf16]", "targets=[cpu-bf16]", "validation.random_plans=3", "tau=1"]
    plan = tune_recipe(load_recipe(folder / "project" / "recipe.yaml", overrides), out)
    assert [path.name for path in (out / "configs").iterdir()] == ["cpu-bf16.json"]
    model = run_block(1)
    wrapped = {n for n, m in model.named_modules() if type(m).__name__ == "HalfPrecisionModuleWrapper"}
    assert wrapped == set(plan.quantized) != set()
