"""INC scripts that know nothing of the plugin: under `inc-mp run`, and with one import line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forked
import helpers
import pytest
from neural_compressor.torch.quantization import quantize
from typer.testing import CliRunner

import inc_mp_plugin as mp
from inc_mp_plugin.cli.main import app

TAU = 0.0005
MODEL = """
import argparse, json, os, sys
import helpers, torch
from neural_compressor.torch.quantization import FP8Config, convert, finalize_calibration, prepare

def calibrate(model):
    with torch.no_grad():
        for seed in range(3):
            model(helpers.tokens(2, 16, seed))

def show(model):
    print(json.dumps(sorted(n for n, m in model.named_modules() if type(m).__name__.startswith("Patched"))))
"""
ONE_STEP = (
    MODEL
    + """
for path in sys.argv[1:]:
    config = FP8Config.from_json_file(path)
    model = prepare(helpers.language_model("llama"), config)
    calibrate(model)
    show(convert(model))
"""
)
TWO_STEPS = (
    MODEL
    + """
parser = argparse.ArgumentParser()
parser.add_argument("--quantize", action="store_true")
arguments = parser.parse_args()
config = FP8Config.from_json_file(os.environ["QUANT_CONFIG"])
model = helpers.language_model("llama")
if config.measure:
    model = prepare(model, config)
    calibrate(model)
    finalize_calibration(model)
if config.quantize:
    assert arguments.quantize
    show(convert(model, config))
"""
)


def run(*arguments):
    command = [sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def config(mode, form, name="only"):
    path = Path(f"{mode.lower()}-{name}.json")
    stats = {"dump_stats_path": f"./{name}/measure", "allowlist": {"names": [], "types": []}}
    path.write_text(json.dumps({"mode": mode, **stats, **form}))
    return path


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """What the plan for the scripts' model and samples is."""
    folder = tmp_path_factory.mktemp("planned")
    given = mp.IPMSEConfig(tau=TAU, dump_stats_path=str(folder / "measure"))
    model = quantize(
        helpers.language_model("llama"),
        given,
        run_fn=lambda m: [m(helpers.tokens(2, 16, seed)) for seed in range(3)],
    )
    names = sorted(n for n, m in model.named_modules() if type(m).__name__.startswith("Patched"))
    assert 0 < len(names) < 15
    return names


NESTED = {"ip_mse": {"tau": TAU}}
FORMS = {"nested": NESTED, "named": {"strategy": "ip_mse", **NESTED}}
STARTS = {
    "inc-mp run": (["-m", "inc_mp_plugin.cli", "run"], ""),
    "one import line": ([], "import inc_mp_plugin.ip_mse\n"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("start", "line"), STARTS.values(), ids=STARTS.keys())
def test_one_step(start, line, planned):
    """In a process from its very start, with each form of the configuration."""
    Path("script.py").write_text(line + ONE_STEP)
    configs = [config("AUTO", form, name) for name, form in FORMS.items()]
    done = run(*start, "script.py", *configs)
    assert done.returncode == 0, done.stderr
    assert [json.loads(text) for text in done.stdout.splitlines()[-2:]] == [planned, planned]
    told = len(FORMS) if "run" in start else 0
    assert done.stderr.count("ops run in fp8_e4m3, the others in fp32.") == told
    assert ("Sensitivity: 3 batches" in done.stderr) == bool(told)


@pytest.mark.slow
def test_two_steps(planned):
    start, _ = STARTS["inc-mp run"]
    Path("script.py").write_text(TWO_STEPS)
    measured = forked.run(*start, "script.py", QUANT_CONFIG=str(config("MEASURE", NESTED)))
    assert measured.returncode == 0, measured.stderr
    done = forked.run(*start, "script.py", "--quantize", QUANT_CONFIG=str(config("QUANTIZE", NESTED)))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == planned


@pytest.mark.slow
def test_without_the_plugin_the_nested_form_stops_and_the_flat_one_quantizes_everything():
    on_cpu = {"use_qdq": True, "scale_method": "maxabs_arbitrary", "hp_dtype": "fp32"}
    Path("script.py").write_text(ONE_STEP)
    nested = forked.run("script.py", config("AUTO", {**on_cpu, **NESTED}))
    assert nested.returncode != 0
    assert "KeyError: 'ip_mse'" in nested.stderr
    flat = forked.run("script.py", config("AUTO", {**on_cpu, "strategy": "ip_mse", "tau": TAU}))
    assert flat.returncode == 0, flat.stderr
    assert len(json.loads(flat.stdout.splitlines()[-1])) == 15


@pytest.mark.slow
def test_a_script_finds_what_it_would_find_under_python():
    Path("beside.py").write_text("name = 'found beside the script'\n")
    text = "import sys, beside\nprint(__name__, sys.argv, beside.name)\nsys.exit(7)\n"
    Path("script.py").write_text(text)
    for start in ([], ["-m", "inc_mp_plugin.cli", "run"]):
        done = run(*start, "script.py", "--help", "-x", "one two")
        assert done.returncode == 7, done.stderr
        assert done.stdout == "__main__ ['script.py', '--help', '-x', 'one two'] found beside the script\n"


BAD = {
    "no such file": ("nowhere.py", "script nowhere.py does not exist; give a Python file"),
    "a folder": (".", "script . is a folder; give a Python file"),
}


@pytest.mark.parametrize(("name", "message"), BAD.values(), ids=BAD.keys())
def test_no_script(name, message):
    result = CliRunner().invoke(app, ["run", name])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_an_error_of_the_plugin_is_a_line_and_one_of_the_script_its_own():
    Path("script.py").write_text(ONE_STEP)
    start = ["-m", "inc_mp_plugin.cli", "run", "script.py"]
    wrong = forked.run(*start, config("AUTO", {"ip_mse": {"tua": 1}}))
    assert wrong.returncode == 2
    assert "Error: unknown ip_mse key 'tua'; did you mean 'tau'?" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    Path("script.py").write_text("raise RuntimeError('of the script')\n")
    own = forked.run(*start)
    assert own.returncode == 1
    assert "RuntimeError: of the script" in own.stderr
