"""The house: imports go downwards, importing is inert, files and functions stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
# Folders from the ground up: a file may import lower floors and its own folder, subfolders included.
FLOORS = (
    ("core", "libraries"),
    ("runtime", "scales", "targets"),
    ("evaluate", "model", "report", "solver"),
    ("export", "gain", "graph", "inc", "qat", "sensitivity"),
    ("stages",),
    ("pipeline",),
    ("experiments", "strategy"),
    ("__init__", "cli", "ip_mse"),
)
# Libraries that only certain places may load.
HOMES = {
    "PIL": {"model/data/images"},
    "datasets": {"model/data/library"},
    "habana_frameworks": {"gain/devices"},
    "highspy": {"solver/highs"},
    "lm_eval": {"evaluate/tasks", "libraries/lm_eval"},
    "matplotlib": {"report/plots"},
    "neural_compressor": {"inc", "strategy", "libraries/neural_compressor"},
    "pydantic": {"pipeline/keys", "pipeline/recipe", "pipeline/sections", "runtime/codec"},
    "rich": {"cli/show", "report", "runtime/progress"},
    "transformers": {"inc/loading", "libraries/transformers", "model/loading"},
    "typer": {"cli"},
    "yaml": {"pipeline/recipe", "pipeline/recipe_file"},
}
WITHOUT_TORCH = ("core", "report", "solver", "targets")
FILES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))


def imports(name):
    """All modules that a file imports anywhere, with the names that it takes from them."""
    for node in ast.walk(ast.parse((PACKAGE / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def floor(folder):
    """Number of the floor that a folder, or a file at the top, stands on."""
    return next(number for number, folders in enumerate(FLOORS) if folder in folders)


def test_the_top_holds_folders_and_two_files():
    top = {p.name for p in PACKAGE.iterdir() if p.is_file()}
    assert top == {"__init__.py", "__init__.pyi", "ip_mse.py", "py.typed"}


@pytest.mark.parametrize("name", FILES)
def test_imports_go_downwards(name):
    own = name.split("/")[0]
    used = {m.split(".")[1] for m in imports(name) if m.startswith("inc_mp_plugin.")} - {own}
    assert {folder for folder in used if floor(folder) >= floor(own)} == set()


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith("libraries/")])
def test_files_of_libraries_use_nothing_of_ours(name):
    assert not [module for module in imports(name) if module.startswith("inc_mp_plugin")]


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_in_their_places(library):
    users = {f for f in FILES if any(m.split(".")[0] == library for m in imports(f))}
    assert users, f"nothing uses {library}"
    assert {f for f in users if f not in HOMES[library] and f.split("/")[0] not in HOMES[library]} == set()


@pytest.mark.parametrize("name", [f for f in FILES if f.split("/")[0] in WITHOUT_TORCH])
def test_values_and_programs_need_no_torch(name):
    assert "torch" not in {module.split(".")[0] for module in imports(name)}


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_stay_small(name):
    text = (PACKAGE / f"{name}.py").read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            first = node.body[ast.get_docstring(node) is not None :]
            assert not first or node.end_lineno - first[0].lineno < 40, node.name


def run(code, *flags):
    return subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False)


def test_importing_is_inert():
    code = (
        "import os, sys; before = dict(os.environ); import inc_mp_plugin; "
        "heavy = {'torch', 'neural_compressor', 'transformers', 'numpy'} & set(sys.modules); "
        "assert not heavy, heavy; assert before == dict(os.environ)"
    )
    result = run(code, "-Werror")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["solve", "--help"], ["solve", "nowhere"]])
def test_the_command_line_loads_no_torch(arguments):
    code = (
        "import sys; from inc_mp_plugin.cli.main import app\n"
        f"try:\n    app({arguments!r})\nexcept SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'neural_compressor' not in sys.modules"
    )
    result = run(code)
    assert result.returncode == 0, result.stderr


def test_every_public_name_is_there():
    for name in inc_mp_plugin.__all__:
        assert getattr(inc_mp_plugin, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        inc_mp_plugin.nothing  # noqa: B018
