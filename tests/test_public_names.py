"""The public names: one list, which type checkers read, and which resolves."""

import subprocess
import sys
from pathlib import Path

import pytest

import inc_mp_plugin as mp

# Of version 0.1.0: each resolves for at least one version more.
OF_0_1_0 = (Path(__file__).parent / "data" / "public-names-0.1.0.txt").read_text().split()


def test_the_names_of_the_first_version_are_there():
    assert set(OF_0_1_0) <= set(mp.__all__)


@pytest.mark.slow
def test_type_checkers_see_the_real_type_of_every_name(tmp_path):
    """No name is `Any`; a function's own arguments and a class's own name are seen."""
    api = pytest.importorskip("mypy.api")
    script = tmp_path / "script.py"
    lines = ["import inc_mp_plugin as mp", *(f"reveal_type(mp.{name})" for name in mp.__all__)]
    script.write_text("\n".join(lines))
    arguments = ["--strict", "--ignore-missing-imports", "--follow-imports=silent", "--no-incremental"]
    output, errors, _ = api.run([str(script), *arguments])
    assert errors == ""
    revealed = {line.split(":")[1]: line.split("Revealed type is ")[1] for line in output.splitlines()[:-1]}
    seen = {name: revealed[str(number)] for number, name in enumerate(mp.__all__, 2)}
    assert [name for name, text in seen.items() if text.strip('"') == "Any"] == []
    assert "-> inc_mp_plugin.core.demands.Serving" in seen["Serving"]
    assert "-> inc_mp_plugin.core.demands.Demands" in seen["demands"]
    assert "settings: inc_mp_plugin.qat.finetune.FineTuning" in seen["finetune"]


def test_every_error_and_every_type_that_a_function_needs_is_public():
    assert {"CaptureError", "SelectionError", "SolverError", "FineTuning", "Partial"} <= set(dir(mp))
    assert dir(mp) == mp.__all__
    assert all(getattr(mp, name) is not None for name in mp.__all__)


def test_the_list_is_read_without_loading_anything():
    code = "import sys, inc_mp_plugin as mp; dir(mp); assert not {'torch', 'numpy'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
