"""The commands to run on a Gaudi with the files of a target."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from dataclasses import dataclass

from inc_mp_plugin.serving import Serving

# Its run_lm_eval.py passes the options of attention and cache on for other models only.
_EVALUATED_EAGERLY = {"Qwen2MoeAttention", "Qwen3Attention", "Qwen3MoeAttention"}

_OPTIMUM_HABANA = """\
#!/usr/bin/env bash
# {model} with optimum-habana 1.21 on Gaudi.
# Run it in examples/text-generation of the optimum-habana repository, after installing its requirements.txt;
# its run_lm_eval.py wants requirements_lm_eval.txt, in an environment of its own.
#
#   bash {name}.sh measure     # once: INC measures every module, for this plan and any other
#   bash {name}.sh accuracy    # the tasks of lm-eval with the plan
#   bash {name}.sh generate    # speed of the plan
#
# QUANT_CONFIG= before a command runs it in BF16, to compare with. CARDS=8 runs on eight cards, by DeepSpeed.
# Measure and run with the same model, number of cards, attention and cache.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
export PT_HPU_LAZY_MODE=1
options=(--model_name_or_path {model} --bf16 --batch_size 1
  --use_hpu_graphs --use_kv_cache --trim_logits{options})
plan=${{QUANT_CONFIG-$here/{name}.json}}

run() {{
  if [ "${{CARDS:-1}}" = 1 ]; then python "$@"; else
    python ../gaudi_spawn.py --use_deepspeed --world_size "$CARDS" "$@"
  fi
}}

case "${{1:-}}" in
  measure)
    QUANT_CONFIG=$here/{name}-measure.json run {measure} ;;
  accuracy)
    QUANT_CONFIG=$plan run run_lm_eval.py "${{options[@]}}" -o accuracy.json ;;
  generate)
    QUANT_CONFIG=$plan run run_generation.py "${{options[@]}}" --max_new_tokens 256 ;;
  *) echo "usage: bash $0 measure | accuracy | generate" >&2; exit 2 ;;
esac
"""
# A warm-up before the tasks would put made-up tokens into the measurement.
_MEASURE_BY_TASK = """run_lm_eval.py "${options[@]}" \\
      -o measured.json --warmup 0 --tasks piqa --limit 256"""
_MEASURE_BY_TEXT = """run_generation.py "${options[@]}" --max_new_tokens 32 \\
      --dataset_name NeelNanda/pile-10k --column_name text --dataset_max_samples 256 --max_input_tokens 512"""

_VLLM_GAUDI = """\
#!/usr/bin/env bash
# {model} with vLLM on Gaudi.
# Run it in the folder calibration of the vllm-gaudi repository, after installing its requirements.txt.
#
#   bash {name}.sh measure     # once: INC measures every module, for this plan and any other
#   bash {name}.sh serve       # serves the model with the plan
#
# Measure and serve with the same model and number of cards: CARDS=8 for eight. Leave VLLM_ROW_PARALLEL_CHUNKS
# and VLLM_PROMPT_USE_FUSEDSDPA as they are: they change which modules run. calibrate_model.sh would use files
# of its own. Where vllm-gaudi has no step-2-measure-scales.py any more, measure with
#   vllm-gaudi-calibrate run {model} -o . \\
#     --phases measure --measure-config {name}-measure.json
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
stats=./hqt_output/{name}

case "${{1:-}}" in
  measure)
    export PT_HPU_WEIGHT_SHARING=0 VLLM_SKIP_WARMUP=true
    QUANT_CONFIG=$here/{name}-measure.json python3 step-2-measure-scales.py \\
      -m {model} --tensor-parallel-size "${{CARDS:-1}}" \\
      --dataset NeelNanda/pile-10k --auto-process-dataset --max-dataset-samples 512 --sample-len 1024 \\
      --max-tokens 32 --batch-size 1 --max-model-len 2048
    mkdir -p "$stats-after" && python3 step-3-postprocess-measure.py -m "$stats/" -o "$stats-after/"
    cp "$stats-after"/* "$stats/" ;;
  serve)
    QUANT_CONFIG=$here/{name}.json vllm serve {model} \\
      --dtype bfloat16 --quantization inc --kv-cache-dtype {cache} \\
      --tensor-parallel-size "${{CARDS:-1}}" --max-model-len "${{LENGTH:-4096}}" ;;
  *) echo "usage: bash $0 measure | serve" >&2; exit 2 ;;
esac
"""


@dataclass(frozen=True, slots=True)
class Deployment:
    """What the commands are about: the model, the classes of its modules, and how it is served."""

    model: str
    classes: Collection[str]
    serving: Serving


def commands(target: str, deployment: Deployment) -> str:
    """A script for a consumer on Gaudi: it measures with INC, then runs with the plan.

    The script finds its files beside itself: <target>.json and <target>-measure.json.
    """
    model, serving = shlex.quote(deployment.model), deployment.serving
    if target == "vllm-gaudi":
        cache = "fp8_inc" if serving.kv_cache == "fp8" else "auto"
        return _VLLM_GAUDI.format(name=target, model=model, cache=cache)
    flash = "\n  --use_flash_attention --flash_attention_recompute" if serving.attention == "flash" else ""
    reuse = " --reuse_cache" if serving.reuse_cache else ""
    by_text = bool(flash or reuse) and not _EVALUATED_EAGERLY.isdisjoint(deployment.classes)
    measure = _MEASURE_BY_TEXT if by_text else _MEASURE_BY_TASK
    return _OPTIMUM_HABANA.format(name=target, model=model, options=flash + reuse, measure=measure)
