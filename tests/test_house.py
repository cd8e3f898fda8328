"""The architecture: imports go downwards, importing is inert, files stay small."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import inc_mp_plugin

PACKAGE = Path(inc_mp_plugin.__file__).parent
GROUND = {
    "errors",
    "formats",
    "plan",
    "sensitivities",
    "op_values",
    "serving",
    "gains",
    "results",
    "store",
    "ranks",
    "artefacts",
    "result_artefacts",
    "batches",
    "texts",
    "checkpoint",
    "load_errors",
    "losses",
    "token_losses",
    "attention",
    "experts",
    "expert_kernels",
    "progress",
    "finite",
    "lock",
    "pace",
    "targets",
    "measurements",
    "switch",
    "advice",
    "libraries",
}
STAGES = {"graph", "sensitivity", "gain", "solver", "qat", "inc", "evaluate", "report"}
ABOVE = {
    "sections",
    "recipe",
    "inputs",
    "subject",
    "heldout",
    "stage",
    "together",
    "value_stages",
    "scripts",
    "ip_mse",
    "float8",
    "request",
    "switching",
    "measured_time",
    "pricing",
    "held_back",
    "time_validation",
    "emission",
    "checking",
    "rehearsal",
    "stages",
    "measured_loss",
    "validation",
    "in_memory",
    "pipeline",
    "run",
    "again",
    "accuracy",
    "experiments",
    "reporting",
    "shown",
    "quiet",
    "cli_app",
    "cli",
}
# What stands on what, above the stages; two files of inc stand on them, too.
MAY_USE = {
    "sections": set(),
    "recipe": {"targets", "sections"},
    "inputs": set(),
    "quiet": set(),
    "cli_app": {"quiet"},
    "stage": set(),
    "subject": {"inputs", "recipe", "sections"},
    "heldout": {"inputs", "recipe", "sections", "subject"},
    "emission": {"recipe"} | STAGES,
    "checking": {"inc"},
    "rehearsal": {"emission", "inputs", "pricing", "recipe", "stages", "subject"} | STAGES,
    "float8": set(),
    "together": set(),
    "scripts": {"inc"},
    "ip_mse": {"inc"},
    "request": {"gain"},
    "switching": {"float8", "inc"},
    "measured_time": {"request", "switching", "gain"},
    "pricing": {"measured_time", "request", "recipe", "sections", "stage", "subject", "gain", "graph"},
    "held_back": {"recipe", "sensitivity"},
    "time_validation": {"pricing", "stage", "subject"} | STAGES,
    "stages": {"stage", "subject", "together"} | STAGES,
    "value_stages": {"recipe", "stage", "subject", "together", "sensitivity"},
    "measured_loss": {"heldout", "stage", "subject", "switching", "recipe", "sections"},
    "validation": {"measured_loss", "stage"} | STAGES,
    "in_memory": {"held_back", "pricing", "sections", "stages", "subject", "value_stages", "targets"},
    "pipeline": {
        "heldout",
        "in_memory",
        "subject",
        "stages",
        "together",
        "emission",
        "measured_loss",
        "validation",
        "recipe",
        "pricing",
        "held_back",
        "value_stages",
    }
    | STAGES,
    "run": {
        "held_back",
        "measured_loss",
        "pricing",
        "recipe",
        "solver",
        "stage",
        "stages",
        "subject",
        "value_stages",
    },
    "again": {"run", "pipeline", "pricing", "time_validation", "validation", "stage", "stages", "emission"}
    | {"recipe"}
    | STAGES,
    "accuracy": {"inputs", "measured_loss"} | STAGES,
    "experiments": {"accuracy", "run", "stage", "stages", "value_stages"} | STAGES,
    "reporting": {"pipeline", "run", "stages"} | STAGES,
    "shown": {"run"} | STAGES,
    "cli": {"again", "checking", "experiments", "reporting", "rehearsal", "shown", "run", "pipeline"}
    | {"recipe", "cli_app", "scripts"}
    | STAGES,
    "inc/live": {"graph"},
    "sensitivity/scaleless": {"inc"},
    "solver/options": {"sensitivity"},
    "inc/legacy": {"graph", "sensitivity", "solver"},
    "inc/choices": {"gain", "sensitivity", "solver", "stages"},
    "inc/flow": {"pipeline", "stages", "subject"} | STAGES,
}
# Libraries that only certain places may load.
HOMES = {
    "highspy": {"solver/highs"},
    "lm_eval": {"evaluate/tasks", "libraries/lm_eval"},
    "neural_compressor": {"inc"},
    "yaml": {"recipe"},
    "pydantic": {"recipe", "sections"},
    "typer": {"cli", "cli_app"},
    "rich": {"progress", "report", "shown"},
    "transformers": {"libraries/transformers", "inputs", "inc/modules", "inc/loading"},
    "habana_frameworks": {"gain/devices"},
}
FILES = sorted(p.relative_to(PACKAGE).with_suffix("").as_posix() for p in PACKAGE.rglob("*.py"))


def imports(name):
    """All modules that a file imports anywhere, those for type checkers aside."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text())
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("name", [f for f in FILES if f != "__init__"])
def test_imports_go_downwards(name):
    own = name.split("/")[0]
    assert own in GROUND | STAGES | ABOVE, f"{name} has no place in the house"
    allowed = GROUND | {own} | MAY_USE.get(name, MAY_USE.get(own, set()))
    used = {m.split(".")[1] for m in imports(name) if m.startswith("inc_mp_plugin.")}
    assert used <= allowed


@pytest.mark.parametrize("name", [f for f in FILES if f.startswith("libraries/")])
def test_files_of_libraries_use_nothing_of_ours(name):
    assert not [module for module in imports(name) if module.startswith("inc_mp_plugin")]


@pytest.mark.parametrize("library", HOMES)
def test_libraries_stay_in_their_places(library):
    users = {f for f in FILES if any(m.split(".")[0] == library for m in imports(f))}
    assert users, f"nothing uses {library}"
    assert {f for f in users if f not in HOMES[library] and f.split("/")[0] not in HOMES[library]} == set()


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_stay_small(name):
    text = (PACKAGE / f"{name}.py").read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            documented = len((ast.get_docstring(node) or "").splitlines())
            assert node.end_lineno - node.lineno + 1 - documented <= 45, node.name


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
        "import sys; from inc_mp_plugin.cli import app\n"
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
