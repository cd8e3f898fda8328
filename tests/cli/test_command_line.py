"""The commands on a small model: results, resume, and every mistake a user can make."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import call, read


def plan_of(folder):
    """plan.json without the seconds the solver took."""
    plan = read(folder, "plan.json")
    del plan["solver"]["seconds"], plan["sha256"]
    return plan


def test_tune_writes_every_artefact(finished):
    names = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert names == {
        "recipe.json",
        "graph.json",
        "sensitivity.json",
        "sensitivity.npz",
        "gains.json",
        "plan.json",
        "validation.json",
        "measured_losses.npz",
        "measured_losses_hooks.npz",
        "configs/cpu-qdq.json",
        "configs/cpu-qdq-measure.json",
        "configs/optimum-habana.json",
        "configs/optimum-habana-measure.json",
        "configs/optimum-habana.sh",
    }
    for name in ("graph", "sensitivity", "gains", "plan", "validation"):
        assert read(finished, f"{name}.json")["schema"] == f"inc_mp_plugin/{name}/1"
    plan = plan_of(finished)
    assert plan["predicted"]["loss_mse"] <= plan["budget"]
    assert set(plan["formats"]) == {op["name"] for op in read(finished, "graph.json")["ops"]}
    assert plan["binds"]


def test_a_second_call_reuses_and_shows_the_same(project, run_folder):
    before = {p: p.stat().st_mtime_ns for p in run_folder.glob("*.json") if p.name != "recipe.json"}
    result = call("tune", project / "recipe.yaml", "--out", run_folder)
    assert result.exit_code == 0
    assert result.output.count("still valid, reused") == 5
    line = result.output.splitlines()[-2]
    assert "Stays in fp32: matmul_av (2), matmul_qk (2); it gains nothing (" in result.output
    assert line.startswith("fp8_e4m3 everywhere (19 of 19 ops) would cost an NRMSE of ")
    assert line.endswith(", predicted. That is above tau 0.00012.")
    assert before == {p: p.stat().st_mtime_ns for p in before}
    within = call("solve", run_folder, "tau=1")
    assert within.output.splitlines()[-1].endswith("That is within tau 1: no plan is needed.")


def test_stale_artefacts_are_made_again_and_said_so(project, finished, run_folder):
    folder = run_folder
    result = call("tune", project / "recipe.yaml", "calibration.samples=4", "--out", folder)
    assert "calibration.samples was 6, is 4" in result.output
    assert read(folder, "sensitivity.json")["samples"] == 4
    (folder / "graph.json").write_text("{")
    result = call("tune", project / "recipe.yaml", "--out", folder)
    assert "making graph.json again" in result.output
    assert "damaged" in result.output
    assert plan_of(folder) == plan_of(finished)


def test_solve_and_emit_and_validate(finished, run_folder, tmp_path):
    folder = run_folder
    before = read(folder, "configs/cpu-qdq.json")
    result = call("solve", folder, "tau=0.00005")
    assert result.exit_code == 0, result.output
    assert "of the allowance" in result.output
    assert plan_of(folder)["tau"] == 0.00005
    assert len(plan_of(folder)["formats"]) == len(plan_of(finished)["formats"])
    assert plan_of(folder)["predicted"]["gain"] < plan_of(finished)["predicted"]["gain"]
    assert not list((folder / "configs").iterdir())
    assert call("emit", folder, "--target", "cpu-qdq").exit_code == 0
    assert read(folder, "configs/cpu-qdq.json") != before
    assert call("validate", folder).exit_code == 0
    assert read(folder, "validation.json")["tau"] == 0.00005
    result = call("solve", folder, "tau=5")
    assert "does not bind: everything that gains anything fits, at an NRMSE of" in result.output


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["tune", "nowhere.yaml"], 2, "nowhere.yaml does not exist"),
        (["tune", "{recipe}", "tau=0"], 2, "override tau=0: input should be greater than 0"),
        (["tune", "{recipe}", "tau=.nan"], 2, "finite"),
        (["tune", "{recipe}", "taw=1", "formts=[x]"], 2, "did you mean 'tau'"),
        (["tune", "{recipe}", "calibration.data=nowhere.jsonl"], 2, "nowhere.jsonl or "),
        (["tune", "{recipe}", "calibration.samples=100"], 2, "holds 8 samples, 100 are asked for"),
        (["tune", "{recipe}", "calibration.sequence_length=65"], 2, "context is 64 tokens"),
        (["tune", "{recipe}", "model.name_or_path=nowhere/at/all"], 2, "cannot be loaded"),
        (["tune", "{recipe}", "tau=.nan", "targets=[foo]", "formats=[fp9]"], 2, "unknown format 'fp9'"),
        (["tune", "{recipe}", "targets=foo"], 2, "it must be a list, such as [foo]"),
        (["solve", "{finished}", "taw=1", "x=2"], 2, "unknown key of solve 'taw'; did you mean 'tau'?"),
        (
            ["tune", "{recipe}", "run.parallel=ddp"],
            2,
            "input should be 'samples' or 'fsdp'",
        ),
        (["tune", "{recipe}", "run.memory=small"], 2, "input should be 'auto', 'low' or 'high'"),
        (["tune", "{recipe}", "run.device_maps=auto"], 2, "did you mean 'device_map'?"),
        (["tune", "{recipe}", "run=fsdp"], 2, "it must hold keys of estimator, draws, memory, parallel"),
        (["tune", "{recipe}", "objective=theoretical_time"], 2, "no peak is known for fp32 on gaudi2"),
        (["tune", "{recipe}", "gain_fraction=0.9", "tau=1e-6"], 3, "least tau that allows it"),
        (["solve", "nowhere"], 2, "is missing; run `inc-mp tune"),
        (["solve", "{finished}", "samples=3"], 2, "to change other keys, run `inc-mp tune`"),
        (["solve", "{finished}", "gain_fraction=0.9", "tau=1e-6"], 3, "least tau"),
        (["emit", "{finished}", "--target", "vllm"], 2, "inc-mp export DIR --out MODEL"),
        (["emit", "{finished}", "--target", "tpu"], 2, "unknown target 'tpu'"),
        (
            ["emit", "{finished}"],
            2,
            "--target is missing; give the consumer of the file: cpu-bf16, cpu-qdq, ",
        ),
        (["validate", "nowhere"], 2, "is missing"),
        (["check", "nowhere.json", "--modules", "x.json"], 2, "does not exist"),
        (["check", "{config}"], 2, "give either --modules FILE.json or --model NAME"),
        (["tune"], 2, "missing argument"),
    ],
)
def test_mistakes(project, run_folder, tmp_path, arguments, code, message):
    names = {
        "{recipe}": project / "recipe.yaml",
        "{finished}": run_folder,
        "{config}": run_folder / "configs" / "cpu-qdq.json",
    }
    given = [str(names.get(a, a)) for a in arguments]
    if given[0] == "tune":
        given += ["--out", str(tmp_path)]
    result = call(*given)
    assert result.exit_code == code, result.output
    assert message in " ".join(result.output.replace("│", " ").split())
    assert "Traceback" not in result.output
    assert not [p for p in tmp_path.rglob(".*")]


@pytest.mark.parametrize("name", ["sensitivity.json", "sensitivity.npz", "gains.json", "plan.json"])
def test_solve_with_a_damaged_artefact(run_folder, name):
    folder = run_folder
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    result = call("solve", folder)
    if name == "plan.json":  # solve writes it anew anyway
        assert result.exit_code == 0
    else:
        assert result.exit_code == 2
        assert f"{name} is damaged" in " ".join(result.output.split())


def interrupt_after(monkeypatch, where, calls):
    """Let a function raise Ctrl-C instead of doing what it does at this call."""
    module, name = where.rsplit(".", 1)
    original, seen = getattr(sys.modules[module], name), []

    def interrupted(*args, **kwargs):
        seen.append(1)
        if len(seen) > calls:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(sys.modules[module], name, interrupted)


@pytest.mark.parametrize(
    ("where", "partial", "said"),
    [
        (
            "inc_mp_plugin.sensitivity.sweeps.begin",
            "sensitivity.partial.npz",
            "going on after 4 samples",
        ),
        ("inc_mp_plugin.model.outcome.sample_losses", "measured_losses_hooks.partial.npz", "Validation"),
    ],
    ids=["sensitivity", "validation"],
)
def test_interrupt_and_resume(project, finished, tmp_path, monkeypatch, where, partial, said):
    with monkeypatch.context() as patch:
        interrupt_after(patch, where, calls={"sensitivity.partial.npz": 2}.get(partial, 10))
        result = call("tune", project / "recipe.yaml", "--out", tmp_path)
    assert result.exit_code == 1
    assert "Interrupted; the same command goes on where it stopped." in result.output
    assert (tmp_path / partial).exists()
    with monkeypatch.context() as patch:  # what is done is not done again
        # The second batch of 5 plans and the base, told to be a chain; floor, and the plan through INC.
        steps = 6 + 2 + 2 * 2 + 2 * 2
        interrupt_after(patch, where, calls={"sensitivity.partial.npz": 1}.get(partial, steps))
        result = call("tune", project / "recipe.yaml", "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert said in result.output
    assert plan_of(tmp_path) == plan_of(finished)
    for name in ("sensitivity.json", "validation.json"):
        assert read(tmp_path, name) == read(finished, name)
    assert not list(tmp_path.glob("*partial*"))


@pytest.mark.slow
def test_a_signal_at_any_time(project, finished, tmp_path):
    command = [sys.executable, "-m", "inc_mp_plugin.cli", "tune", str(project / "recipe.yaml")]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored in a shell's background
    )
    while not (tmp_path / "graph.json").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert errors.count("Interrupted") == 1
    assert "Traceback" not in errors
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())
    assert call("tune", project / "recipe.yaml", "--out", tmp_path).exit_code == 0
    assert plan_of(tmp_path) == plan_of(finished)


def test_an_edited_plan_is_noticed(run_folder):
    path = run_folder / "plan.json"
    path.write_text(path.read_text().replace('"binds": true', '"binds": false'))
    result = call("emit", run_folder, "--target", "cpu-qdq")
    assert result.exit_code == 2
    assert "not what was written" in " ".join(result.output.split())


def test_check(finished, tmp_path):
    modules = finished / "graph.json"
    result = call("check", finished / "configs" / "optimum-habana.json", "--modules", modules)
    assert result.exit_code == 0, result.output
    count = sum(f != "fp32" for f in plan_of(finished)["formats"].values())
    assert f"INC would quantize {count} of" in result.output
    path = tmp_path / "hand.json"
    path.write_text(json.dumps({"blocklist": {"names": ["lm_head", "layers.77"], "types": []}}))
    result = call("check", path, "--modules", modules)
    assert result.exit_code == 2
    assert "'layers.77' matches no module" in result.output
    path.write_text(json.dumps({"alowlist": {"names": ["lm_head"], "types": []}, "method": "HOOKS"}))
    result = call("check", path, "--modules", modules)
    assert result.exit_code == 2
    assert "INC ignores the key 'alowlist'; did you mean 'allowlist'?" in result.output
    assert "INC ignores the key 'method'." in result.output
    path.write_text(json.dumps({"blocklist": {"names": ["(", "*"], "types": []}}))
    assert call("check", path, "--modules", modules).output.count("not a regular expression") == 2
    path.write_text(json.dumps({"allowlist": {"names": ["qkv"], "types": []}}))
    result = call("check", path, "--model", Path(read(finished, "recipe.json")["model"]["name_or_path"]))
    assert result.exit_code == 2
    assert "selects nothing" in result.output


def test_all_lines_of_the_table_are_equally_long(run_folder):
    lines = [line for line in call("solve", run_folder).output.splitlines() if line[:1] in "┏┃┡│└"]
    tables = {len(line) for line in lines}
    assert lines
    assert len(tables) <= 2  # one width for layers, one for the head
