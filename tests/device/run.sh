#!/usr/bin/env bash
# The experiment on one CUDA GPU, in eight minutes: `tests/device/run.sh --out DIR`; with --cpu a rehearsal of it.
# It needs no network, and of Python only torch, numpy and transformers (4.55 or later), as they are found.
#   --only a        repeat one part; the others keep what results.json holds of them
#   --cpu           tiny shapes on the CPU: shows that the script runs, its times mean nothing
#   --limit-s N     time for all parts together (480)
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
export PYTHONPATH="$root:$root/tests${PYTHONPATH:+:$PYTHONPATH}"
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
exec "${PYTHON:-python3}" -m device.experiment "$@"
