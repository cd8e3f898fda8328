"""One writer per folder: real processes, killed ones, other machines, and calls within calls."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import helpers
import pytest
from helpers import call

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import lock
from inc_mp_plugin.runtime.lock import NAME, exclusive, locked

ROOT = Path(__file__).parents[2]
HOLD = """
import sys, time, pathlib
from inc_mp_plugin.runtime.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the folder until it is told to end."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def writes(folder):
    with locked(folder):
        return True


def test_the_second_process_is_told_who_holds_it(other, tmp_path):
    with pytest.raises(InputError) as caught:
        writes(tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{tmp_path} is in use: `-c {tmp_path}` (process {other.pid} on")
    assert socket.gethostname() in said
    assert "since 20" in said
    assert "\n" not in said
    assert caught.value.exit_code == 2
    other.communicate("end\n", timeout=30)
    assert writes(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [signal.SIGKILL, signal.SIGTERM])
def test_the_lock_of_a_killed_process_is_taken_over(other, tmp_path, code, caplog):
    other.send_signal(code)
    other.wait(timeout=30)
    assert (tmp_path / NAME).exists()
    with caplog.at_level("INFO", "inc_mp_plugin"):
        assert writes(tmp_path)
    assert f"going on after `-c {tmp_path}` (process {other.pid}" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_aside_is_removed(tmp_path):
    """Files that were not whole and folders of logits; nothing that anybody else may have put there."""
    left = [".plan.json.4711", "configs/.cpu-qdq.json.4711", ".base-logits-4711-ab_c/0.bin"]
    kept = [".plan.json", ".cache.1/x.json", "plan.json.12", ".env.12", "configs/cpu-qdq.json"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    assert writes(tmp_path)
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert files == set(kept)
    assert not (tmp_path / ".base-logits-4711-ab_c").exists()


def test_a_number_that_another_process_has_now_does_not_matter(tmp_path):
    """What the file says names this very process, which runs; nobody holds the lock."""
    left = lock._ourselves()
    (tmp_path / NAME).write_text(json.dumps(asdict(left)))
    assert writes(tmp_path)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"host": "elsewhere", "boot": "another kernel"}, True),
        ({"host": "elsewhere", "boot": ""}, True),
        ({"host": "elsewhere"}, False),  # a container of this machine
        ({"boot": "before the machine was started again"}, False),
    ],
    ids=["another machine", "a machine without numbers of boots", "a container", "a restart"],
)
def test_what_another_machine_left_is_not_taken_over(tmp_path, changes, refused):
    path = tmp_path / NAME
    path.write_text(json.dumps(asdict(replace(lock._ourselves(), **changes))))
    if not refused:
        assert writes(tmp_path)
        return
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"on elsewhere, since .* delete {path}$"):
        writes(tmp_path)
    assert path.read_bytes() == before
    path.unlink()
    assert writes(tmp_path)


def test_a_file_that_was_cut_off_holds_nobody_up(tmp_path):
    (tmp_path / NAME).write_text('{"process": 1')
    assert writes(tmp_path)


def test_without_locks_the_file_alone_counts(tmp_path, monkeypatch, caplog):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with caplog.at_level("INFO", "inc_mp_plugin"):
        assert writes(tmp_path)
    assert "without locks (Operation not supported)" in caplog.text
    (tmp_path / NAME).write_text(json.dumps(asdict(lock._ourselves())))
    with pytest.raises(InputError, match="if it has ended, delete"):
        writes(tmp_path)


def test_calls_within_calls_and_threads_beside_each_other(tmp_path):
    link = tmp_path / "link"
    (tmp_path / "folder").mkdir()
    link.symlink_to(tmp_path / "folder")
    refused = []

    def beside():
        try:
            writes(tmp_path / "folder")
        except InputError as error:
            refused.append(str(error))

    with locked(tmp_path / "folder"):
        assert writes(link)
        assert (tmp_path / "folder" / NAME).exists()  # the inner call has not let it go
        thread = threading.Thread(target=beside)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    assert writes(tmp_path / "folder")


def test_an_error_lets_it_go(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        raise ZeroDivisionError
    assert writes(tmp_path)


def test_many_processes_one_after_the_other(tmp_path):
    """The file is removed and made again all the time; no two may ever be within."""
    code = """
import sys, pathlib
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.core.errors import InputError
folder, entered = pathlib.Path(sys.argv[1]), 0
while entered < 200:
    try:
        with locked(folder):
            (folder / "inside").mkdir()
            (folder / "inside").rmdir()
            entered += 1
    except InputError:
        pass
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    crowd = [subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}) for _ in range(3)]
    assert [process.wait(timeout=120) for process in crowd] == [0, 0, 0]


COMMANDS = ["solve", "frontier", "validate", "report", "emit --target cpu-qdq", "experiment choices"]


def test_commands_in_a_folder_where_tune_is_running(tmp_path):
    """And they go on where a killed one stopped."""
    project = helpers.small_project(tmp_path)
    folder = project / "run"
    recipe = project / "recipe.yaml"
    assert call("tune", recipe, "--out", folder).exit_code == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    command = [sys.executable, "-m", "inc_mp_plugin.cli", "tune", recipe, "calibration.samples=5"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = subprocess.Popen([*command, "--out", folder], env=environment, stderr=subprocess.PIPE)
    try:
        while not (folder / NAME).exists() or not (folder / NAME).read_text():
            assert running.poll() is None
        running.send_signal(signal.SIGSTOP)
        for name, *others in [*(line.split() for line in COMMANDS), ["tune"]]:
            given = [recipe, "--out", folder] if name == "tune" else [folder, *others]
            result = call(name, *given)
            assert result.exit_code == 2, result.output
            assert result.output.count("\n") == 1
            assert f"process {running.pid} on" in result.output
            assert "cli tune" in result.output
        now = {path: path.read_bytes() for path in before}
        assert {path.name for path in before if now[path] != before[path]} <= {"recipe.json"}
    finally:
        running.kill()
        running.communicate()
    result = call("solve", folder)
    assert result.exit_code == 0, result.output
    assert f"process {running.pid}" in result.output
    assert not (folder / NAME).exists()


def test_a_folder_that_is_missing_is_not_made(tmp_path):
    missing = tmp_path / "nowhere"
    assert exclusive(lambda folder: folder.exists())(missing) is False
    assert not missing.exists()


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"), locked(tmp_path / "file"):
        pass
