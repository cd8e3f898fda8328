"""The scripts beside the files: run for real, with stand-ins that say how they were called."""

import os
import shutil
import subprocess

import pytest

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.targets.commands import SCRIPT_REQUEST, Deployment, commands

TARGETS = ("vllm-gaudi", "optimum-habana")
STATS = "./hqt_output/model/stats"
FLASH = Serving(attention="flash", reuse_cache=True)
# Says how it was called, one argument in brackets each; step 3 writes what it would have mended.
ECHO = """\
#!/usr/bin/env bash
echo "QUANT_CONFIG=${QUANT_CONFIG-unset} COLLECTIVES=${PT_HPU_ENABLE_LAZY_COLLECTIVES-unset} ${0##*/} $*"
printf '[%s]' "$@"
echo
while [ $# != 0 ]; do
  [ "$1" != --out ] || echo mended > "$2/measure_hooks_maxabs_0_1.json"
  shift
done
"""


@pytest.fixture
def consumer(tmp_path):
    """The folder of a consumer's examples, with measurements and programs that print their arguments."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "python3", "vllm"):
        (programs / name).write_text(ECHO)
        (programs / name).chmod(0o755)
    (tmp_path / STATS).mkdir(parents=True)
    for name in ("step-2-measure-scales.py", f"{STATS}/measure_hooks_maxabs_0_1.npz"):
        (tmp_path / name).touch()
    return tmp_path


def script(
    target, serving=None, *, classes=(), model="meta/model", request=None, plan="plan: all", stats=STATS
):
    deployment = Deployment(model, classes, serving or Serving(), stats, request or SCRIPT_REQUEST, plan)
    return commands(target, deployment)


def call(consumer, target, *arguments, environment=None, **deployed):
    path = consumer / "con figs" / f"{target}.sh"
    path.parent.mkdir(exist_ok=True)
    path.write_text(script(target, **deployed))
    ours = {"QUANT_CONFIG", "MODEL", "CARDS", "LENGTH", "DATASET", "PT_HPU_ENABLE_LAZY_COLLECTIVES"}
    inherited = {key: value for key, value in os.environ.items() if key not in ours}
    programs = f"{consumer / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", path, *arguments],
        cwd=consumer,
        env={**inherited, "PATH": programs, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def printed(*arguments, **options):
    result = call(*arguments, **options)
    assert result.returncode == 0, result.stderr
    return result.stdout


def options_of(output):
    """What a command was called with: {option: values}."""
    (line,) = (line for line in output.splitlines() if line.startswith("["))
    options, values = {}, []
    for argument in line[1:-1].split("]["):
        if argument.startswith("-"):
            values = options[argument] = []  # the last one wins, as in argparse
        else:
            values.append(argument)
    return {option: " ".join(values) for option, values in options.items()}


@pytest.mark.parametrize(("serving", "cache"), [(Serving(), "auto"), (Serving("fp8"), "fp8_inc")])
def test_vllm_serves_with_the_cache_of_the_plan(consumer, serving, cache):
    output = printed(consumer, "vllm-gaudi", "serve", serving=serving)
    assert (
        f"QUANT_CONFIG={consumer}/con figs/vllm-gaudi.json COLLECTIVES=unset vllm serve meta/model" in output
    )
    options = options_of(output)
    assert options["--quantization"] == "inc"
    assert options["--kv-cache-dtype"] == cache
    assert options["--tensor-parallel-size"] == "1"


def test_vllm_measures_in_two_steps(consumer):
    first, _, second, _ = printed(consumer, "vllm-gaudi", "measure").splitlines()
    assert (
        f"QUANT_CONFIG={consumer}/con figs/vllm-gaudi-measure.json COLLECTIVES=unset python3 step-2" in first
    )
    assert "--tensor-parallel-size 1 --dataset NeelNanda/pile-10k" in first
    assert f"python3 step-3-postprocess-measure.py --measurements {STATS} --out /" in second
    assert second.startswith("QUANT_CONFIG=unset")
    assert (consumer / STATS / "measure_hooks_maxabs_0_1.json").read_text() == "mended\n"


def test_vllm_on_eight_cards_measured_and_served_alike(consumer):
    for step in ("measure", "serve"):
        output = printed(consumer, "vllm-gaudi", step, environment={"CARDS": "8"})
        assert "COLLECTIVES=true" in output.splitlines()[0]
        assert "--tensor-parallel-size 8" in output


def test_where_vllm_has_no_steps_any_more(consumer):
    (consumer / "step-2-measure-scales.py").unlink()
    result = call(consumer, "vllm-gaudi", "measure", model="my models/a")
    assert result.returncode == 2
    assert "vllm-gaudi-calibrate run my\\ models/a" in result.stderr
    assert f"--measure-config {consumer}/con\\ figs/vllm-gaudi-measure.json" in result.stderr


def test_vllm_takes_requests_as_long_as_planned(consumer):
    request = Request(prompt_tokens=2048, output_tokens=128)
    planned = options_of(printed(consumer, "vllm-gaudi", "serve", request=request))
    assert planned["--max-model-len"] == "2176"
    longer = printed(consumer, "vllm-gaudi", "serve", request=request, environment={"LENGTH": "9000"})
    assert options_of(longer)["--max-model-len"] == "9000"


def test_optimum_habana_runs_everything_alike(consumer):
    flags = {"--use_flash_attention", "--flash_attention_recompute", "--reuse_cache"}
    for step, end in (("measure", "-measure"), ("accuracy", ""), ("generate", "")):
        output = printed(consumer, "optimum-habana", step, serving=FLASH)
        assert f"QUANT_CONFIG={consumer}/con figs/optimum-habana{end}.json" in output
        assert "python run_" in output
        assert flags <= options_of(output).keys()
        assert flags.isdisjoint(options_of(printed(consumer, "optimum-habana", step)))


def test_only_speed_is_taken_with_the_planned_request(consumer):
    request = Request(prompt_tokens=2048, output_tokens=64, batch_size=8)
    by_step = {
        step: options_of(printed(consumer, "optimum-habana", step, request=request))
        for step in ("measure", "accuracy", "generate")
    }
    assert {step: options["--batch_size"] for step, options in by_step.items()} == {
        "measure": "1",
        "accuracy": "1",
        "generate": "8",
    }
    assert by_step["generate"]["--max_input_tokens"] == "2048"
    assert by_step["generate"]["--max_new_tokens"] == "64"


def test_a_prompt_alone_still_gives_its_first_token(consumer):
    output = printed(consumer, "optimum-habana", "generate", request=Request(512, 0, 1))
    assert options_of(output)["--max_new_tokens"] == "1"


@pytest.mark.parametrize(
    ("classes", "serving", "by_text"),
    [
        pytest.param(["Qwen3Attention", "Linear"], FLASH, True, id="qwen3, flash"),
        pytest.param(["GaudiQwen3Attention"], FLASH, True, id="qwen3 as captured on Gaudi"),
        pytest.param(["SomeAttention"], FLASH, True, id="a model that nobody told of"),
        pytest.param(["Qwen3Attention"], Serving(), False, id="qwen3, eager"),
        pytest.param(["Qwen3Attention"], Serving(reuse_cache=True), False, id="qwen3, cache reused"),
        pytest.param(["LlamaAttention", "Linear"], FLASH, False, id="llama"),
        pytest.param(["GaudiMixtralAttention"], FLASH, False, id="mixtral"),
    ],
)
def test_what_is_measured_and_scored_runs_the_planned_attention(consumer, classes, serving, by_text):
    options = {"classes": classes, "serving": serving}
    measured = printed(consumer, "optimum-habana", "measure", **options)
    assert ("run_generation.py" if by_text else "run_lm_eval.py") in measured
    assert ("pile-10k" if by_text else "--tasks piqa") in measured
    scored = call(consumer, "optimum-habana", "accuracy", **options)
    assert scored.returncode == (2 if by_text else 0)
    assert ("inc-mp solve DIR attention=eager" in scored.stderr) == by_text
    base = printed(consumer, "optimum-habana", "accuracy", environment={"QUANT_CONFIG": ""}, **options)
    assert base.startswith("QUANT_CONFIG= ")
    assert "python run_lm_eval.py" in base


def test_optimum_habana_in_bf16_and_on_eight_cards(consumer):
    base = printed(consumer, "optimum-habana", "generate", environment={"QUANT_CONFIG": ""})
    assert base.startswith("QUANT_CONFIG= ")
    assert "python run_generation.py" in base
    for step in ("measure", "accuracy", "generate"):
        eight = printed(consumer, "optimum-habana", step, environment={"CARDS": "8"})
        assert "python ../gaudi_spawn.py --use_deepspeed --world_size 8 run_" in eight


@pytest.mark.parametrize("target", TARGETS)
def test_other_texts_are_measured_on_and_options_added(consumer, target):
    output = printed(consumer, target, "measure", "--limit", "9", environment={"DATASET": "my texts"})
    first = output.splitlines()[1]
    assert "[my texts]" in first
    assert first.endswith("[--limit][9]")


@pytest.mark.parametrize(
    ("target", "step"),
    [("vllm-gaudi", "serve"), ("optimum-habana", "accuracy"), ("optimum-habana", "generate")],
)
def test_a_plan_does_not_run_where_nothing_was_measured(consumer, target, step):
    shutil.rmtree(consumer / STATS)
    result = call(consumer, target, step)
    assert result.returncode == 2
    assert f"no measurements in {consumer}/{STATS}" in result.stderr
    if target == "optimum-habana":  # which needs none in BF16, or has others for another file
        for config in ("", "/other.json"):
            assert f"QUANT_CONFIG={config} " in printed(
                consumer, target, step, environment={"QUANT_CONFIG": config}
            )


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("model", ["my models/a;b", "it's", 'say "x"', "a}b", "~/$HOME/`id`", "two\nlines"])
def test_a_model_whose_name_needs_quotes(consumer, target, model):
    step = {"vllm-gaudi": "serve", "optimum-habana": "generate"}[target]
    assert f"[{model}]" in printed(consumer, target, step, model=model)
    assert "[/data/my model]" in printed(
        consumer, target, step, model=model, environment={"MODEL": "/data/my model"}
    )


@pytest.mark.parametrize("target", TARGETS)
def test_the_head_says_what_is_run(target):
    text = script(target, model="meta/model", plan="plan: 225 of 289 ops in FP8, tau 0.01")
    head = text.splitlines()[:3]
    assert head[0] == "#!/usr/bin/env bash"
    assert head[1].startswith("# meta/model with ")
    assert head[2] == "# plan: 225 of 289 ops in FP8, tau 0.01"


@pytest.mark.parametrize("target", TARGETS)
def test_a_step_that_there_is_not(consumer, target):
    for arguments in ([], ["serv"]):
        result = call(consumer, target, *arguments)
        assert result.returncode == 2
        assert "usage: bash" in result.stderr


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("serving", [Serving(), FLASH])
def test_bash_can_read_it(target, serving):
    text = script(target, serving, classes=["Qwen3Attention"])
    result = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (0, "")
