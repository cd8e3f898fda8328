"""The scripts beside the files: run for real, with stand-ins that say how they were called."""

import os
import subprocess

import pytest

from inc_mp_plugin.serving import Serving
from inc_mp_plugin.targets.commands import Deployment, commands

ECHO = '#!/usr/bin/env bash\necho "QUANT_CONFIG=${QUANT_CONFIG-unset} ${0##*/} $*"\n'


@pytest.fixture
def consumer(tmp_path):
    """A folder with the consumer's programs, all of which print what they are called with."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "python3", "vllm"):
        (programs / name).write_text(ECHO)
        (programs / name).chmod(0o755)
    return tmp_path


def call(consumer, target, serving, *arguments, classes=(), model="meta/model", **environment):
    script = consumer / "configs" / f"{target}.sh"
    script.parent.mkdir(exist_ok=True)
    script.write_text(commands(target, Deployment(model, classes, serving)))
    stats = consumer / "hqt_output" / "vllm-gaudi-after"
    stats.mkdir(parents=True, exist_ok=True)
    (consumer / "hqt_output" / "vllm-gaudi").mkdir(exist_ok=True)
    (stats / "measured.json").write_text("{}")  # what the post-processing step would have written
    inherited = {key: value for key, value in os.environ.items() if key != "QUANT_CONFIG"}
    path = f"{consumer / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", script, *arguments],
        cwd=consumer,
        env={**inherited, "PATH": path, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_vllm_serves_with_the_cache_of_the_plan(consumer):
    for serving, cache in ((Serving(), "auto"), (Serving("fp8"), "fp8_inc")):
        printed = call(consumer, "vllm-gaudi", serving, "serve").stdout
        assert f"QUANT_CONFIG={consumer}/configs/vllm-gaudi.json vllm serve meta/model" in printed
        assert f"--quantization inc --kv-cache-dtype {cache} --tensor-parallel-size 1" in printed


def test_vllm_measures_in_two_steps(consumer):
    first, second = call(consumer, "vllm-gaudi", Serving(), "measure", CARDS="8").stdout.splitlines()
    assert f"QUANT_CONFIG={consumer}/configs/vllm-gaudi-measure.json python3 step-2" in first
    assert "--tensor-parallel-size 8" in first
    assert "QUANT_CONFIG=unset python3 step-3-postprocess-measure.py" in second
    assert (consumer / "hqt_output" / "vllm-gaudi" / "measured.json").exists()


def test_optimum_habana_runs_everything_alike(consumer):
    serving = Serving(attention="flash", reuse_cache=True)
    options = "--use_flash_attention --flash_attention_recompute --reuse_cache"
    for step, end in (("measure", "-measure"), ("accuracy", ""), ("generate", "")):
        printed = call(consumer, "optimum-habana", serving, step).stdout
        assert f"QUANT_CONFIG={consumer}/configs/optimum-habana{end}.json python run_" in printed
        assert options in printed
    plain = call(consumer, "optimum-habana", Serving(), "generate").stdout
    assert "flash" not in plain
    assert "reuse" not in plain


@pytest.mark.parametrize(
    ("classes", "serving", "script"),
    [
        (["Qwen3Attention"], Serving(attention="flash"), "run_generation.py"),
        (["Qwen3Attention"], Serving(), "run_lm_eval.py"),
        (["LlamaAttention"], Serving(attention="flash"), "run_lm_eval.py"),
    ],
)
def test_what_measures_in_the_right_attention(consumer, classes, serving, script):
    assert script in call(consumer, "optimum-habana", serving, "measure", classes=classes).stdout


def test_optimum_habana_in_bf16_and_on_eight_cards(consumer):
    base = call(consumer, "optimum-habana", Serving(), "generate", QUANT_CONFIG="").stdout
    assert base.startswith("QUANT_CONFIG= python run_generation.py")
    eight = call(consumer, "optimum-habana", Serving(), "generate", CARDS="8").stdout
    assert "python ../gaudi_spawn.py --use_deepspeed --world_size 8 run_generation.py" in eight


@pytest.mark.parametrize("target", ["vllm-gaudi", "optimum-habana"])
def test_a_step_that_there_is_not(consumer, target):
    for arguments in ([], ["serv"]):
        result = call(consumer, target, Serving(), *arguments)
        assert result.returncode == 2
        assert "usage: bash" in result.stderr


def test_a_model_whose_name_needs_quotes(consumer):
    printed = call(consumer, "vllm-gaudi", Serving(), "serve", model="my models/a;b").stdout
    assert "vllm serve my models/a;b --dtype" in printed
