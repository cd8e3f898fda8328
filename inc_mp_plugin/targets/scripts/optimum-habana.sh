#!/usr/bin/env bash
# @@title with optimum-habana 1.21 on Gaudi
# @@plan
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
#   DATASET=name           what to measure on: @@data
#   QUANT_CONFIG=          runs in BF16, to compare with
# Options after the step are passed on and win: bash optimum-habana.sh generate --batch_size 4
#
# Measurements go below the folder where this runs. Go on there, with the same model, device generation and
# number of cards.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
model=${MODEL:-@@model}
cards=${CARDS:-1}
stats=@@stats
plan=${QUANT_CONFIG-$here/optimum-habana.json}
options=(--model_name_or_path "$model" --bf16
  --use_hpu_graphs --use_kv_cache --trim_logits@@options)
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
    QUANT_CONFIG=$here/optimum-habana-measure.json run @@measure "${@:2}" ;;
  accuracy)
@@refusal    must_be_measured
    QUANT_CONFIG=$plan run run_lm_eval.py "${options[@]}" --batch_size 1 -o accuracy.json "${@:2}" ;;
  generate)
    must_be_measured
    QUANT_CONFIG=$plan run run_generation.py "${options[@]}" --batch_size @@batch_size \
      --max_input_tokens @@prompt_tokens --max_new_tokens @@new_tokens "${@:2}" ;;
  *) echo "usage: bash $0 measure | accuracy | generate" >&2; exit 2 ;;
esac
