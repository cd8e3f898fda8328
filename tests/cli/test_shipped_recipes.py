"""What ships, in any folder: recipes, their paths, the demo; and what is said where a library is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import SHIPPED, call, read, told

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.pipeline.recipe import load_recipe
from inc_mp_plugin.pipeline.shipped import recipe_path
from inc_mp_plugin.runtime import packages
from inc_mp_plugin.runtime.shipped import or_shipped

RECIPES = SHIPPED.parent
# A process in which these are not there; what they bring is not, either.
WITHOUT_TORCH = """
import sys
GONE = {"torch", "neural_compressor", "transformers", "safetensors", "jinja2", "accelerate"}

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in GONE:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Finder())
from inc_mp_plugin.cli.main import main
main()
"""


def test_the_table_has_every_recipe():
    result = call("recipes")
    assert result.exit_code == 0, result.output
    rows = [line.split("│") for line in result.output.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == sorted(path.stem for path in RECIPES.glob("*.yaml"))
    by_name = {row[1].strip(): [cell.strip() for cell in row[2:5]] for row in rows}
    assert by_name["tiny-llama-proof"][:2] == ["memory", "tau 0.002"]
    assert by_name["llama-3.1-8b-gaudi"] == ["roofline", "kl 0.001", "Llama-3.1-8B-Instruct on Gaudi"]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-llama.yaml", "llama-3.1-8b", "qwen3-30b"])
def test_a_recipe_is_printed_as_it_is(name):
    path = recipe_path(name)
    assert path.name.startswith(name.removesuffix(".yaml"))
    assert call("recipes", name).stdout == path.read_text()


def test_a_recipe_that_does_not_ship():
    assert "did you mean 'tiny-llama'?" in told(call("recipes", "tinny-llama"))
    result = call("recipes", "paper")
    assert result.exit_code == 2
    assert "2 recipes begin with 'paper': paper-llama-3.1-8b, paper-llama-3.2-1b" in told(result)


def test_paths_under_recipes_are_the_shipped_ones_where_there_is_no_such_file(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "inc_mp_plugin")
    Path("my.yaml").write_text(call("recipes", "tiny-llama").stdout)
    recipe = load_recipe(Path("my.yaml"), ["validation.data=recipes/tiny-llama/heldout.jsonl"])
    assert Path(recipe.model.name_or_path) == SHIPPED
    assert (recipe.calibration.data, recipe.validation.data) == (
        SHIPPED / "calibration.jsonl",
        SHIPPED / "heldout.jsonl",
    )
    assert f"recipes/tiny-llama is not here: the package's own is taken, {SHIPPED}" in caplog.messages
    assert load_recipe(Path("recipes/tiny-llama.yaml"), []) == recipe
    own = Path("recipes/tiny-llama/calibration.jsonl")
    own.parent.mkdir(parents=True)
    own.write_text('{"text": "mine"}\n')
    assert load_recipe(Path("my.yaml"), []).calibration.data == own
    monkeypatch.chdir(SHIPPED)
    assert or_shipped("recipes/nothing") == "recipes/nothing"
    assert or_shipped("calibration.jsonl") == "calibration.jsonl"


def test_the_demo_leaves_its_folder_where_it_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in RECIPES.rglob("*")}
    small = ("calibration.samples=2", "calibration.sequence_length=32", "noise=uniform", "confidence=null")
    result = call("demo", *small, "validation=null")
    assert result.exit_code == 0, result.output
    assert read(tmp_path / "runs" / "tiny-llama", "plan.json")["kl"] == 0.001
    assert before == {path: path.stat().st_mtime_ns for path in RECIPES.rglob("*")}


def test_a_missing_library_is_said_before_anything_is_done(project, tmp_path, monkeypatch):
    there = packages.find_spec
    gone = ("neural_compressor", "transformers")
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name in gone else there(name))
    result = call("tune", project / "recipe.yaml", "--out", tmp_path / "x")
    assert result.exit_code == 2
    assert told(result) == (
        "Error: not installed: neural_compressor, transformers; run: pip install 'inc_mp_plugin[hf,inc]'"
    )
    assert not (tmp_path / "x").exists()


def run(*arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("command", ["solve", "explain", "frontier"])
def test_plans_of_a_folder_need_neither_torch_nor_inc(run_folder, command):
    result = run(command, run_folder)
    assert result.returncode == 0, result.stderr
    assert result.stdout


@pytest.mark.parametrize("arguments", [("emit", "{}", "--target", "cpu-qdq"), ("validate", "{}"), ("demo",)])
def test_what_needs_torch_says_so_in_one_line(run_folder, arguments):
    result = run(*(argument.format(run_folder) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert re.fullmatch(
        r"Error: not installed: \w+; run: pip install 'inc_mp_plugin\[inc\]'\n", result.stderr
    )


def test_names_of_the_package_say_it_too():
    code = WITHOUT_TORCH.replace(
        "from inc_mp_plugin.cli.main import main\nmain()", "import inc_mp_plugin as mp"
    )
    code += "\ntry: mp.tune\nexcept mp.InputError as error: print(error)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stdout == "not installed: torch; run: pip install 'inc_mp_plugin[inc]'\n"


def test_a_module_that_no_extra_brings_is_no_fault_of_the_user(monkeypatch):
    with pytest.raises(InputError, match="not installed: torch"):
        monkeypatch.setattr(packages, "find_spec", lambda name: None)
        packages.need("torch", "nothing_of_ours")
    packages.need("nothing_of_ours")
