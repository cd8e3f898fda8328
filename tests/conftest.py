"""What many tests share: one thread per process beside others, and the finished run of a small model.

What is expensive is made once, whatever number of processes pytest-xdist starts: the first that asks makes
it, behind a lock, and the others wait.
"""

import os
import shutil

if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from filelock import FileLock


@pytest.fixture(scope="session")
def made_once(tmp_path_factory):
    """Return a function (name, make) -> folder, which calls make(folder) once for all processes."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder_of(name, make):
        folder, done = base / "shared" / name, base / "shared" / f"{name}.done"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(folder.parent / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return folder_of


@pytest.fixture(scope="session")
def project(made_once):
    """A small model of random weights with the shipped tokenizer, data and a recipe; not to be changed."""
    import helpers

    return made_once("project", helpers.small_project)


@pytest.fixture(scope="session")
def finished(made_once, project):
    """A folder that `inc-mp tune` wrote of the project's recipe; not to be changed."""
    import helpers

    def tune(folder):
        result = helpers.call("tune", project / "recipe.yaml", "--out", folder)
        assert result.exit_code == 0, result.output

    return made_once("finished", tune)


@pytest.fixture
def run_folder(finished, tmp_path):
    """A copy of the finished folder that a test may change."""
    return shutil.copytree(finished, tmp_path / "my run")
