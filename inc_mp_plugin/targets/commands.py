"""The commands to run on a Gaudi with the files of a target."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.request import Request

# Models to which its run_lm_eval.py passes the options of attention on; Mixtral has one attention only. All
# others it runs in eager attention. --reuse_cache changes nothing there: it scores prompts, in one pass each.
_SCORED_AS_TOLD = frozenset(
    f"{model}Attention" for model in ("Falcon", "Gemma", "Llama", "Mistral", "Mixtral", "Qwen2", "Starcoder2")
)

_OPTIMUM_HABANA = """\
#!/usr/bin/env bash
# {title} with optimum-habana 1.21 on Gaudi
# {plan}
#
# Run it in examples/text-generation of the optimum-habana repository, after installing its requirements.txt;
# its run_lm_eval.py wants requirements_lm_eval.txt, in an environment of its own.
#
#   bash {name}.sh measure     # once: INC measures every module, for this plan and any other
#   bash {name}.sh accuracy    # tasks of lm-eval with the plan
#   bash {name}.sh generate    # speed of the plan, with the batch size and lengths it was made for
#
# Before bash, as needed:
#   MODEL=/path/to/model   weights in a folder of this machine
#   CARDS=8                several cards, by DeepSpeed
#   DATASET=name           what to measure on: {data}
#   QUANT_CONFIG=          runs in BF16, to compare with
# Options after the step are passed on and win: bash {name}.sh generate --batch_size 4
#
# Measurements go below the folder where this runs. Go on there, with the same model, device generation and
# number of cards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${{MODEL:-{model}}}
cards=${{CARDS:-1}}
stats={stats}
plan=${{QUANT_CONFIG-$here/{name}.json}}
options=(--model_name_or_path "$model" --bf16
  --use_hpu_graphs --use_kv_cache --trim_logits{options})
export PT_HPU_LAZY_MODE=1

run() {{
  if [ "$cards" = 1 ]; then python "$@"; else
    python ../gaudi_spawn.py --use_deepspeed --world_size "$cards" "$@"
  fi
}}

must_be_measured() {{
  if [ "$plan" = "$here/{name}.json" ] && ! compgen -G "$stats/*.npz" > /dev/null; then
    echo "no measurements in $PWD/$stats: change to where they were made, or first run: bash $0 measure" >&2
    exit 2
  fi
}}

case "${{1:-}}" in
  measure)
    QUANT_CONFIG=$here/{name}-measure.json run {measure} "${{@:2}}" ;;
  accuracy)
{refusal}    must_be_measured
    QUANT_CONFIG=$plan run run_lm_eval.py "${{options[@]}}" --batch_size 1 -o accuracy.json "${{@:2}}" ;;
  generate)
    must_be_measured
    QUANT_CONFIG=$plan run run_generation.py "${{options[@]}}" --batch_size {batch_size} \\
      --max_input_tokens {prompt_tokens} --max_new_tokens {new_tokens} "${{@:2}}" ;;
  *) echo "usage: bash $0 measure | accuracy | generate" >&2; exit 2 ;;
esac
"""
# A warm-up before the tasks would put made-up tokens into the measurement.
_MEASURE_BY_TASK = """run_lm_eval.py "${options[@]}" --batch_size 1 \\
      -o measured.json --warmup 0 --tasks "${DATASET:-piqa}" --limit 256"""
_MEASURE_BY_TEXT = """run_generation.py "${options[@]}" --batch_size 1 \\
      --dataset_name "${DATASET:-NeelNanda/pile-10k}" --column_name text --dataset_max_samples 256 \\
      --max_input_tokens 512 --max_new_tokens 32"""
_REFUSE_ACCURACY = """\
    if [ -n "$plan" ]; then
      echo "run_lm_eval.py runs this model in eager attention whatever it is told; the plan is for flash." \\
        "For accuracy: inc-mp solve DIR attention=eager, inc-mp emit, and measure with those files" >&2
      exit 2
    fi
"""

_VLLM_GAUDI = """\
#!/usr/bin/env bash
# {title} with vLLM on Gaudi
# {plan}
#
# Run it in the folder calibration of the vllm-gaudi repository, after installing its requirements.txt.
#
#   bash {name}.sh measure     # once: INC measures every module, for this plan and any other
#   bash {name}.sh serve       # serves the model with the plan
#
# Before bash, as needed:
#   MODEL=/path/to/model   weights in a folder of this machine
#   CARDS=8                several cards
#   LENGTH=8192            tokens of a prompt and its answer together, at most
#   DATASET=name           what to measure on: texts of the hub or in a folder, of 1024 tokens and more
# Options after the step are passed on and win: bash {name}.sh serve --port 8001
#
# Measurements go below the folder where this runs. Go on there, with the same model, device generation and
# number of cards. Leave VLLM_ROW_PARALLEL_CHUNKS and VLLM_PROMPT_USE_FUSEDSDPA unset: each changes modules.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${{MODEL:-{model}}}
cards=${{CARDS:-1}}
stats={stats}
[ "$cards" = 1 ] || export PT_HPU_ENABLE_LAZY_COLLECTIVES=true  # for HPU graphs over several cards

case "${{1:-}}" in
  measure)
    if [ ! -e step-2-measure-scales.py ]; then
      echo "no step-2-measure-scales.py in $PWD: run this in the folder calibration of vllm-gaudi. Newer" \\
        "versions have a command instead (not tried): vllm-gaudi-calibrate run $(printf %q "$model") -o ." \\
        "--tp $cards --phases measure --measure-config $(printf %q "$here/{name}-measure.json")" >&2
      exit 2
    fi
    # Steps 2 and 3 of calibrate_model.sh, which would measure with files of its own.
    QUANT_CONFIG=$here/{name}-measure.json python3 step-2-measure-scales.py \\
      --model "$model" --tensor-parallel-size "$cards" \\
      --dataset "${{DATASET:-NeelNanda/pile-10k}}" --auto-process-dataset --max-dataset-samples 512 \\
      --sample-len 1024 --max-tokens 32 --batch-size 1 --max-model-len 2048 "${{@:2}}"
    # Step 3 gives the products of attention the range of the cache they read: their own already, unless an
    # answer ended before it read its prompt from there. It cannot write where it reads.
    after=$(mktemp -d)
    python3 step-3-postprocess-measure.py --measurements "$stats" --out "$after"
    cp "$after"/* "$stats"
    rm -r "$after" ;;
  serve)
    if ! compgen -G "$stats/*.npz" > /dev/null; then
      echo "no measurements in $PWD/$stats: change to where they were made, or first run: bash $0 measure" >&2
      exit 2
    fi
    QUANT_CONFIG=$here/{name}.json vllm serve "$model" \\
      --dtype bfloat16 --quantization inc --kv-cache-dtype {cache} \\
      --tensor-parallel-size "$cards" --max-model-len "${{LENGTH:-{length}}}" "${{@:2}}" ;;
  *) echo "usage: bash $0 measure | serve" >&2; exit 2 ;;
esac
"""


# What scripts ask for where a recipe has no request.
SCRIPT_REQUEST = Request(prompt_tokens=1024, output_tokens=256)


@dataclass(frozen=True, slots=True)
class Deployment:
    """Subject of the commands: a model, the classes of its modules, and how it is served.

    `stats` is the folder of the measurements, with no slash at its end; `plan` is one line about the plan.
    """

    model: str
    classes: Collection[str]
    serving: Serving
    stats: str
    request: Request
    plan: str


def commands(target: str, deployment: Deployment) -> str:
    """Write a script for a consumer on Gaudi: it measures with INC, then runs with the plan.

    The script finds its files beside itself: <target>.json and <target>-measure.json.
    """
    serving, request = deployment.serving, deployment.request
    common = {
        "name": target,
        "title": " ".join(deployment.model.split()),
        "plan": " ".join(deployment.plan.split()),
        "model": shlex.quote(deployment.model),
        "stats": shlex.quote(deployment.stats),
    }
    if target == "vllm-gaudi":
        cache = "fp8_inc" if serving.kv_cache == "fp8" else "auto"
        return _VLLM_GAUDI.format(**common, cache=cache, length=request.prompt_tokens + request.output_tokens)
    flash = serving.attention == "flash"
    attention = "\n  --use_flash_attention --flash_attention_recompute" if flash else ""
    kinds = {kind.removeprefix("Gaudi") for kind in deployment.classes if kind.endswith("Attention")}
    by_text = flash and not kinds <= _SCORED_AS_TOLD
    return _OPTIMUM_HABANA.format(
        **common,
        options=attention + (" --reuse_cache" if serving.reuse_cache else ""),
        data="texts of the hub or in a folder, in a column text" if by_text else "a task of lm-eval",
        measure=_MEASURE_BY_TEXT if by_text else _MEASURE_BY_TASK,
        refusal=_REFUSE_ACCURACY if by_text else "",
        batch_size=request.batch_size,
        prompt_tokens=request.prompt_tokens,
        new_tokens=max(request.output_tokens, 1),
    )
