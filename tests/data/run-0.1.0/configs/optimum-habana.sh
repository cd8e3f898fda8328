#!/usr/bin/env bash
# ./model with optimum-habana 1.21 on Gaudi
# plan: 14 of 19 ops in FP8, tau 0.00012, objective memory
#
# Run it in examples/text-generation of the optimum-habana repository, after installing its requirements.txt;
# its run_lm_eval.py wants requirements_lm_eval.txt, in an environment of its own.
#
#   bash optimum-habana.sh measure     # once: INC measures every module, for this plan and any other
#   bash optimum-habana.sh accuracy    # tasks of lm-eval with the plan
#   bash optimum-habana.sh generate    # speed of the plan, with the batch size and lengths it was made for
#
# Before bash, as needed:
#   MODEL=/path/to/model   weights in a folder of this machine
#   CARDS=8                several cards, by DeepSpeed
#   DATASET=name           what to measure on: a task of lm-eval
#   QUANT_CONFIG=          runs in BF16, to compare with
# Options after the step are passed on and win: bash optimum-habana.sh generate --batch_size 4
#
# Measurements go below the folder where this runs. Go on there, with the same model, device generation and
# number of cards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${MODEL:-./model}
cards=${CARDS:-1}
stats=./hqt_output/model/optimum-habana-eager
plan=${QUANT_CONFIG-$here/optimum-habana.json}
options=(--model_name_or_path "$model" --bf16
  --use_hpu_graphs --use_kv_cache --trim_logits)
export PT_HPU_LAZY_MODE=1

run() {
  if [ "$cards" = 1 ]; then python "$@"; else
    python ../gaudi_spawn.py --use_deepspeed --world_size "$cards" "$@"
  fi
}

must_be_measured() {
  if [ "$plan" = "$here/optimum-habana.json" ] && ! compgen -G "$stats/*.npz" > /dev/null; then
    echo "no measurements in $PWD/$stats: change to where they were made, or first run: bash $0 measure" >&2
    exit 2
  fi
}

case "${1:-}" in
  measure)
    QUANT_CONFIG=$here/optimum-habana-measure.json run run_lm_eval.py "${options[@]}" --batch_size 1 \
      -o measured.json --warmup 0 --tasks "${DATASET:-piqa}" --limit 256 "${@:2}" ;;
  accuracy)
    must_be_measured
    QUANT_CONFIG=$plan run run_lm_eval.py "${options[@]}" --batch_size 1 -o accuracy.json "${@:2}" ;;
  generate)
    must_be_measured
    QUANT_CONFIG=$plan run run_generation.py "${options[@]}" --batch_size 1 \
      --max_input_tokens 1024 --max_new_tokens 256 "${@:2}" ;;
  *) echo "usage: bash $0 measure | accuracy | generate" >&2; exit 2 ;;
esac
