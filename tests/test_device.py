"""The experiment on an accelerator, rehearsed on the CPU, and what it does when a part fails."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import helpers
import pytest
import torch
from device import casts, clock, experiment, values
from device.page import page
from device.timed import Graphed, one_step

SCRIPT = Path(__file__).parent / "device" / "run.sh"


def run(*arguments, cpu=True):
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = [str(SCRIPT), *(["--cpu"] if cpu else []), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_rehearsal(tmp_path):
    result = run("--out", tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: part["status"] for name, part in results["parts"].items()} == dict.fromkeys("abcde", "done")
    assert results["device"] == "cpu"
    for case in results["parts"]["a"]["cases"]:
        assert ("fp8 static padded" in case["ways"]) == (case["rows"] < 17)
        for entry in case["ways"].values():
            assert entry["count"] >= 2
            flops = 2 * case["rows"] * case["inner"] * case["columns"]
            assert entry["tflops"] == pytest.approx(flops / entry["s"] / 1e12)
    for way in (way for name, way in results["parts"]["b"].items() if ", " in name):
        assert len(way["rows"]) == 2**3 - 1 + 1 + 3 + 1 + 1  # q k v, o, gate up, down, head
        assert [row["groups"] for row in way["structures"]] == [2] * 4
        assert not any(row["failure"] for row in (*way["rows"], *way["structures"]))
    plans = results["parts"]["c"]["plans"]
    assert len({plan["tau"] for plan in plans}) == 4
    strategies = {"empirical_time", "theoretical_time", "roofline", "memory", "random", "prefix"}
    assert {plan["strategy"] for plan in plans} <= strategies  # on a CPU, FP8 may gain no time
    assert strategies - {plan["strategy"] for plan in plans} <= {"empirical_time"}
    tiny = results["parts"]["d"]["tiny"]
    assert tiny["ops"] == 2 * 9 + 1  # seven linear layers and two products of attention, and the head
    assert tiny["rounds"] == 3
    assert tiny["difference"] == 0.0  # the same sums in low memory, bit for bit
    checks = results["parts"]["e"]["checks"]
    assert {"product, one scale", "product, scales by row"} < checks.keys()
    assert all(check["holds"] for check in checks.values())
    rows = [line for line in (tmp_path / "results.md").read_text().splitlines() if line.startswith("| tiny")]
    assert len(rows) == 5
    assert len({len(row) for row in rows[:4]}) == 1

    before = results["parts"]["a"]
    assert run("--out", tmp_path, "--only", "e").returncode == 0
    again = json.loads((tmp_path / "results.json").read_text())
    assert again["parts"]["a"] == before
    assert again["parts"]["e"]["status"] == "done"


def options(tmp_path):
    return argparse.Namespace(out=tmp_path, cpu=True)


def test_a_part_that_fails_or_hangs_has_its_reason(tmp_path, monkeypatch):
    script = "import sys, time; print('so far'); time.sleep(float(sys.argv[1])); sys.exit('no kernel image')"
    (tmp_path / "broken.py").write_text(script.replace("sys.argv[1]", "0"))
    (tmp_path / "hanging.py").write_text(script.replace("sys.argv[1]", "60"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(experiment, "PARTS", {"a": ("broken", 30), "d": ("hanging", 3), "e": ("absent", 30)})
    monkeypatch.setattr(experiment, "GRACE_S", 1)
    found = {name: experiment.run_part(name, options(tmp_path), 100.0) for name in experiment.PARTS}
    assert {part["status"] for part in found.values()} == {"failed"}
    assert found["a"]["reason"] == "exit code 1: no kernel image"
    assert found["d"]["reason"] == "not done after 3 s"
    assert "No module named absent" in found["e"]["reason"]
    run_of = {"device": "x", "command": "y", "date": "z", "versions": {}}
    assert "no kernel image" in page({**run_of, "parts": found})


def test_the_error_is_found_in_a_long_log():
    log = "Traceback\n  File x\nNotImplementedError: no kernel\n\nCPU: registered at [kernel]\n"
    assert experiment.last_words(log) == "NotImplementedError: no kernel"
    assert experiment.last_words("does not hold: losses\n") == "does not hold: losses"
    assert experiment.last_words("") == "no words"


def test_without_time_or_a_device(tmp_path):
    result = run("--out", tmp_path, "--limit-s", 5)
    assert result.returncode == 1
    parts = json.loads((tmp_path / "results.json").read_text())["parts"]
    assert all(part["status"] == "skipped" and "s were left" in part["reason"] for part in parts.values())
    if not torch.cuda.is_available():
        result = run("--out", tmp_path, cpu=False)
        assert result.returncode == 1
        assert result.stderr.strip() == "torch finds no CUDA device here; --cpu rehearses without one"


def test_calls_are_measured_forwards_and_backwards(monkeypatch):
    """Three rounds; the medians of what a clock says, by hand."""
    order = []
    seconds = iter([1.0, 10.0, 11.0, 2.0, 3.0, 12.0, 13.0, 4.0, 5.0, 14.0, 15.0, 9.0])
    monkeypatch.setattr(clock, "_seconds", lambda run, device: run() or next(seconds))
    runs = {name: lambda name=name: order.append(name) for name in "AB"}
    found = clock.times_s(runs, device=torch.device("cpu"), rounds=3, limit_s=60)
    assert "".join(order) == "ABBA" * 3
    assert {name: entry["s"] for name, entry in found.items()} == {"A": 3.5, "B": 12.5}
    assert found["B"]["se_s"] == pytest.approx(1.2533 * (17.5 / 5) ** 0.5 / 6**0.5)


def test_no_round_begins_after_the_limit():
    found = clock.times_s({"A": lambda: None}, device=torch.device("cpu"), rounds=50, limit_s=0.0)
    assert found["A"]["count"] == 2


def test_a_decode_step_is_the_same_in_every_call():
    """Against a pass over the prompt and its next token."""
    model, ids = helpers.language_model("llama"), helpers.tokens(1, 8)
    step = one_step(model, {"input_ids": ids})
    with torch.inference_mode():
        token = model(input_ids=ids).logits[:, -1:].argmax(-1)
        expected = model(input_ids=torch.cat([ids, token], dim=1)).logits[:, -1]
        for _ in range(3):
            torch.testing.assert_close(step().logits[:, -1], expected)


def test_a_graph_of_each_call_and_configuration(monkeypatch):
    made = []
    monkeypatch.setattr("device.timed.captured", lambda call, pool: made.append(call) or call)
    selected = []
    device = Graphed(clock_of("cuda"), selected.append)
    calls = [lambda: None, lambda: None]
    for formats in ({}, {"q": "fp8_e4m3"}, {}, {"q": "fp8_e4m3"}):
        device.select(formats)
        for call in calls:
            assert device.seconds(call) == 1.0
    assert made == calls * 2
    assert selected == [{}, {"q": "fp8_e4m3"}] * 2


def clock_of(name):
    """A device on which everything takes a second."""
    return argparse.Namespace(name=name, description="", seconds=lambda call: 1.0)


def test_casts_by_hand():
    """Scales are largest / 448; a row of zeros stays zeros; what is padded is cut off again."""
    x = torch.tensor([[448.0, -56.0], [0.0, 0.0], [3.5, 7.0]])
    codes, scale = casts.cast_rows(x)
    torch.testing.assert_close(scale[:, 0], torch.tensor([1.0, 1e-12, 7.0 / 448]))
    assert codes.float().tolist() == [[448.0, -56.0], [0.0, 0.0], [224.0, 448.0]]
    codes, scale = casts.cast_tensor(x)
    assert scale == 1.0
    assert codes.float().tolist() == x.tolist()
    padded = casts.padded_static(x, torch.tensor(2.0))
    assert padded.shape == (32, 2)
    assert padded[:3].float().tolist() == [[448.0, -112.0], [0.0, 0.0], [7.0, 14.0]]
    assert not padded[3:].float().any()


def test_differences_by_hand():
    codes = torch.tensor([1.0, 2.0, 3.0, 4.0]).to(torch.float8_e4m3fn)
    assert values.unequal(codes, torch.tensor([1.0, 2.0, 3.25, 4.0]).to(torch.float8_e4m3fn)) == 0.25
    assert values.error(torch.tensor([1.0, -3.9]), torch.tensor([1.0, -4.0])) == pytest.approx(0.025)
