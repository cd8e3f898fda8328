"""Results of the nightly lanes: written from pytest's files, and out of date once a watched path changes."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "nightly.py"
TOML = """
[digits]
watches = ["recipes", "one.py"]
most_skipped = 1
"""
JUNIT = """<testsuites>
<testsuite tests="5" failures="{failures}" errors="0" skipped="{skipped}"/>
</testsuites>"""


def git(root, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@y"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def commit(root):
    git(root, "add", "-A")
    git(root, "commit", "-qm", "x")
    return git(root, "rev-parse", "HEAD")


@pytest.fixture
def nightly(tmp_path):
    """The script in a repository of its own, with one lane."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "nightly.py").write_text(SCRIPT.read_text())
    (tmp_path / ".ci" / "nightly.toml").write_text(TOML)
    (tmp_path / "docs").mkdir()
    (tmp_path / "one.py").write_text("1")
    (tmp_path / "other.py").write_text("1")
    git(tmp_path, "init", "-q")
    spec = importlib.util.spec_from_file_location("nightly", tmp_path / ".ci" / "nightly.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(nightly, status=0, failures=0, skipped=0):
    results = nightly.ROOT / "results"
    results.mkdir(exist_ok=True)
    (results / "a.xml").write_text(JUNIT.format(failures=failures, skipped=skipped))
    return nightly.record("digits", status, commit(nightly.ROOT), str(results))


def test_a_result_holds_until_a_watched_file_changes(nightly):
    assert not nightly.RESULTS.exists()
    commit(nightly.ROOT)
    assert nightly.stale() == "digits was never run; run .ci/nightly digits, commit nightly.json"
    assert record(nightly, skipped=1) == ""
    result = json.loads(nightly.RESULTS.read_text())["digits"]
    assert (result["passed"], result["failed"], result["skipped"]) == (4, 0, 1)
    (nightly.ROOT / "other.py").write_text("2")
    commit(nightly.ROOT)
    assert nightly.stale() == ""
    command = [sys.executable, nightly.__file__, "stale"]
    assert subprocess.run(command, check=False).returncode == 0
    (nightly.ROOT / "one.py").write_text("2")
    commit(nightly.ROOT)
    assert "what it watches (recipes, one.py) has changed since" in nightly.stale()
    assert subprocess.run(command, check=False, capture_output=True).returncode == 1


def test_failures_and_too_many_skipped_tests_are_faults(nightly):
    assert "1 failed, 4 passed" in record(nightly, status=1, failures=1)
    assert "2 skipped, at most 1 are allowed" in record(nightly, skipped=2)
    assert "2 skipped" in nightly.stale()


def test_a_lane_that_died_writes_nothing(nightly):
    assert "ended with exit code 2, and no test failed" in record(nightly, status=2)
    assert not nightly.RESULTS.exists()
