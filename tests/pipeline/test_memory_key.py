"""The key `run.memory` reaches the pass: blocks run under checkpoints with low, and none with high."""

import re
from contextlib import nullcontext

import helpers
import pytest
from helpers import call, told
from neural_compressor.torch.quantization import quantize

import inc_mp_plugin as mp
from inc_mp_plugin.core.footprint import footprint
from inc_mp_plugin.model.replay import Replays
from inc_mp_plugin.stages.graph import GRAPH

BATCHES = [{"input_ids": helpers.tokens(2, 8)}]
BLOCKS = ("model.layers.0", "model.layers.1")


@pytest.fixture
def replayed(monkeypatch):
    """The blocks of every batch."""
    blocks = []
    monkeypatch.setattr(Replays, "of", lambda self, model, names: nullcontext(blocks.append(tuple(names))))
    return blocks


@pytest.mark.parametrize(("memory", "expected"), [("low", BLOCKS), ("high", ())])
@pytest.mark.parametrize("face", ["function", "tune", "configuration"])
def test_memory_reaches_the_pass(replayed, tmp_path, face, memory, expected):
    run, model = {"memory": memory}, helpers.language_model("llama")
    if face == "function":
        mp.measure_sensitivity(model, mp.capture(model, BATCHES[0]), BATCHES, memory=memory)
    elif face == "tune":
        mp.tune(model, BATCHES, tau=0.1, run=run, out=tmp_path)
    else:
        files = str(tmp_path / "measure")
        config = mp.IPMSEConfig(tau=0.1, run=run, use_qdq=True, dump_stats_path=files)
        quantize(model, config, run_fn=lambda m: [m(**batch) for batch in BATCHES])
    assert set(replayed) == {expected}


def test_memory_of_a_recipe_reaches_the_pass(replayed, project, tmp_path):
    keys = ["run.memory=low", "validation=null", "calibration.samples=4"]
    assert call("tune", project / "recipe.yaml", *keys, "--out", tmp_path).exit_code == 0
    assert set(replayed) == {BLOCKS}


def test_a_dry_run_says_the_memory_of_both(project, tmp_path):
    """As many bytes as the formula says of the folder's graph, of FP32."""
    many = "calibration.batch_size=4000"
    result = call("tune", project / "recipe.yaml", "--dry-run", many, "--out", tmp_path)
    line = re.search(
        r"A sensitivity pass takes about ([\d.]+) GB beside the weights, or ([\d.]+) GB with run.memory=low",
        told(result),
    )
    needed = footprint(GRAPH.read(tmp_path), 4)
    assert needed.high > needed.low + 10**8
    assert [float(number) for number in line.groups()] == pytest.approx(
        [needed.high / 1e9, needed.low / 1e9], abs=0.05
    )
