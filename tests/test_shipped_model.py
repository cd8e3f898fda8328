"""The shipped model, end to end: what the README promises."""

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from inc_mp_plugin.cli import app

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "recipes" / "tiny-llama"


def test_the_folder_is_small_and_the_model_is_trained():
    size = sum(path.stat().st_size for path in MODEL.iterdir() if path.is_file())
    assert size < 8e6
    log = json.loads((MODEL / "training.json").read_text())["log"]
    losses = [entry["heldout_loss"] for entry in log]
    assert losses[0] == pytest.approx(math.log(1024), rel=0.02)  # untrained: all tokens alike
    assert losses[-1] < 0.4 * losses[0]
    assert losses[-3] - losses[-1] < 0.01 * losses[-1]  # levelled


def test_heldout_samples_are_not_calibration_samples():
    texts = [set((MODEL / f"{part}.jsonl").read_text().splitlines()) for part in ("calibration", "heldout")]
    assert [len(part) for part in texts] == [128, 512]
    assert not texts[0] & texts[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The README's main job, with more random plans."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ["tune", "recipes/tiny-llama.yaml", "validation.random_plans=40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        result = CliRunner().invoke(app, [*arguments, "--out", str(folder)])
    assert result.exit_code == 0, result.output
    return folder


@pytest.mark.slow
def test_predicted_against_measured(run):
    validation = json.loads((run / "validation.json").read_text())
    points = np.array([[p["predicted"], p["measured"]] for p in validation["points"]])
    assert len(points) == 40
    assert np.corrcoef(np.log(points.T))[0, 1] >= 0.98
    assert 0.5 <= points[:, 0].sum() / points[:, 1].sum() <= 2.5
    assert validation["nrmse"] <= validation["tau"]


@pytest.mark.slow
def test_tau_binds_and_the_plan_beats_random_ones(run):
    """At the plan's memory, random plans are predicted to cost more: the plan is the best there is."""
    plan = json.loads((run / "plan.json").read_text())
    assert plan["binds"]
    assert 0.9 * plan["tau"] <= plan["predicted"]["nrmse"] <= plan["tau"]
    gains = json.loads((run / "gains.json").read_text())["objectives"]["memory"]["groups"]
    gain = {g["ops"][0]: g["gain"][-1] for g in gains if len(g["gain"]) > 1}
    totals = json.loads((run / "sensitivity.json").read_text())["ops"]
    draw = random.Random(0)
    for _ in range(200):
        chosen, saved = [], 0.0
        for op in draw.sample(sorted(gain), len(gain)):
            if saved < plan["predicted"]["gain"]:
                chosen.append(op)
                saved += gain[op]
        assert sum(totals[op]["total"] for op in chosen) / 768 > plan["predicted"]["loss_mse"]
