#!/usr/bin/env bash
# @@title with vLLM on Gaudi
# @@plan
#
# Run it in the folder calibration of the vllm-gaudi repository, after installing its requirements.txt.
#
#   bash vllm-gaudi.sh measure     # once: INC measures every module, for this plan and any other
#   bash vllm-gaudi.sh serve       # serves the model with the plan
#
# Before bash, as needed:
#   MODEL=/path/to/model   weights in a folder of this machine
#   CARDS=8                several cards
#   LENGTH=8192            tokens of a prompt and its answer together, at most
#   DATASET=name           what to measure on: texts of the hub or in a folder, of 1024 tokens and more
# Options after the step are passed on and win: bash vllm-gaudi.sh serve --port 8001
#
# Measurements go below the folder where this runs. Go on there, with the same model, device generation and
# number of cards. Leave VLLM_ROW_PARALLEL_CHUNKS and VLLM_PROMPT_USE_FUSEDSDPA unset: each changes modules.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${MODEL:-@@model}
cards=${CARDS:-1}
stats=@@stats
[ "$cards" = 1 ] || export PT_HPU_ENABLE_LAZY_COLLECTIVES=true  # for HPU graphs over several cards

case "${1:-}" in
  measure)
    if [ ! -e step-2-measure-scales.py ]; then
      echo "no step-2-measure-scales.py in $PWD: run this in the folder calibration of vllm-gaudi. Newer" \
        "versions have a command instead (not tried): vllm-gaudi-calibrate run $(printf %q "$model") -o ." \
        "--tp $cards --phases measure --measure-config $(printf %q "$here/vllm-gaudi-measure.json")" >&2
      exit 2
    fi
    # Steps 2 and 3 of calibrate_model.sh, which would measure with files of its own.
    QUANT_CONFIG=$here/vllm-gaudi-measure.json python3 step-2-measure-scales.py \
      --model "$model" --tensor-parallel-size "$cards" \
      --dataset "${DATASET:-NeelNanda/pile-10k}" --auto-process-dataset --max-dataset-samples 512 \
      --sample-len 1024 --max-tokens 32 --batch-size 1 --max-model-len 2048 "${@:2}"
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
    QUANT_CONFIG=$here/vllm-gaudi.json vllm serve "$model" \
      --dtype bfloat16 --quantization inc --kv-cache-dtype @@cache \
      --tensor-parallel-size "$cards" --max-model-len "${LENGTH:-@@length}" "${@:2}" ;;
  *) echo "usage: bash $0 measure | serve" >&2; exit 2 ;;
esac
