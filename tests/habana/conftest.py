"""These tests run where optimum-habana is installed and its stand-in for Gaudi's software is on PYTHONPATH.

    HABANA_STUB_DEVICE=gaudi2 PYTHONPATH=.:tests/habana/stub pytest tests/habana

They change transformers for the whole process, so they run only when they are asked for by name; in any other
run, and anywhere else, nothing here is collected.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


AVAILABLE = _installed("optimum.habana") and _installed("habana_frameworks")
WITHOUT_DEVICE = {"conftest.py", "models.py", "test_models.py"}
if AVAILABLE:
    # optimum-habana asks the first `pip` on the path which Gaudi software is installed.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    # INC's second logger writes a file; its default place is the user's home.
    os.environ.setdefault("HABANA_LOGS", tempfile.mkdtemp())
    os.environ.setdefault("LOGLEVEL", "ERROR")


def pytest_ignore_collect(collection_path: Path, config) -> bool | None:
    """Ignores the stand-in always, and the rest unless it can run and was asked for."""
    asked = any(Path(argument.split("::")[0]).resolve().is_relative_to(HERE) for argument in config.args)
    ignored = collection_path == HERE / "stub" or not (AVAILABLE and asked)
    if AVAILABLE and collection_path.is_file() and collection_path.name not in WITHOUT_DEVICE:
        from habana_frameworks import device

        ignored = ignored or device.name() is None
    return True if ignored else None


@pytest.fixture(scope="session")
def measurements(tmp_path_factory):
    """A folder where each model is measured once per attention mode."""
    return tmp_path_factory.mktemp("measurements")
