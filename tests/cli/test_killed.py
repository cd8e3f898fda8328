"""Runs that are killed at random moments, and go on: the artefacts of a run in one go."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import call, read
from killed import samples_in
from processes import ROOT, torchrun

SCRIPT = Path(__file__).with_name("killed.py")
KEYS = ["noise=measured", "kl=0.0003", "tau=0.0005", "calibration.batch_size=1"]  # of the project's recipe
SAMPLES, HELD_OUT_BATCHES = 6, 4
PARTIAL = "sensitivity.partial.npz"


def moments(seed):
    """Five random moments, one in each part of the work; and when a result is about to be written."""
    draw = random.Random(seed)

    done = [part * SAMPLES + draw.randrange(1, SAMPLES) for part in range(3)]
    measuring = [{"file": PARTIAL, "samples": samples} for samples in done]
    validating = {"file": "measured_losses_hooks.partial.npz", "times": draw.randrange(1, HELD_OUT_BATCHES)}
    delays = [None if draw.random() < 0.3 else draw.uniform(0.0, 0.05) for _ in range(5)]
    parts = (*measuring, {"file": "gains.json"}, validating)
    drawn = [{**moment, "delay": delay} for moment, delay in zip(parts, delays, strict=True)]
    return [*drawn[:3], {"file": "sensitivity.npz", "delay": None}, *drawn[3:]]


def killed(moment, *arguments):
    """Run a command until it is killed; return the samples that a measurement held at each step."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), json.dumps(moment), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, (moment, done.stderr)
    return written_in(done.stderr)


def written_in(said):
    return list(map(int, re.findall(r"\[samples: (\d+)\]", said)))


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def arrays_in(path):
    with np.load(path, allow_pickle=False) as arrays:
        return {name: array.tolist() for name, array in arrays.items()}


def assert_same_artefacts(folder, other):
    """Compare all files byte for byte: but for seconds, and the order of what was measured."""
    assert files_in(folder) == files_in(other)
    for name in files_in(folder):
        if name == "plan.json":
            mine, its = (read(one, name) for one in (folder, other))
            for plan in (mine, its):
                del plan["solver"]["seconds"], plan["sha256"]
            assert mine == its
        elif name.startswith("measured_losses"):
            assert arrays_in(folder / name) == arrays_in(other / name), name
        else:
            assert (folder / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.slow
def test_a_run_that_is_killed_five_times(project, tmp_path):
    command = ["tune", project / "recipe.yaml", *KEYS, "--out"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    result = call(*command, whole)
    assert result.exit_code == 0, result.output
    kept = 0
    for moment in moments(seed=0):
        print(moment)  # for the report of a failure
        steps = killed(moment, *command, folder)
        assert not (folder / "validation.json").exists()
        assert steps == list(range(kept + 1, kept + 1 + len(steps)))  # no batch is measured twice
        kept = samples_in(folder / PARTIAL) if (folder / PARTIAL).exists() else 3 * SAMPLES
    result = call(*command, folder)
    assert result.exit_code == 0, result.output
    assert "sensitivity.json: still valid, reused" in result.output
    assert_same_artefacts(folder, whole)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_and_are_killed(project, tmp_path):
    """The second is killed, which ends both; they go on, and the plan is that of one process in one go."""
    command = ["tune", project / "recipe.yaml", *KEYS, "validation=null", "--out"]
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    result = call(*command, whole)
    assert result.exit_code == 0, result.output

    def run(file):
        moment = json.dumps({"rank": 1, "file": file, "samples": 5, "delay": None})
        return torchrun(SCRIPT, moment, *command, folder, "run.parallel=fsdp")

    done = run("sensitivity.partial.1.npz")
    assert done.returncode != 0
    assert "Signal 9 (SIGKILL)" in done.stderr
    assert "[rank0]: Traceback" not in done.stderr  # a line says that the other is gone
    assert not (folder / "sensitivity.json").exists()
    assert samples_in(folder / PARTIAL) >= 4
    done = run("no such file")
    assert done.returncode == 0, done.stderr
    assert written_in(done.stderr) == [5, 6, 7, 8, 9]  # of three samples: their maxabs, rows and losses
    assert not list(folder.glob("*partial*"))
    one, two = (arrays_in(place / "sensitivity.npz") for place in (whole, folder))
    assert one == two
    assert read(folder, "plan.json")["formats"] == read(whole, "plan.json")["formats"]
