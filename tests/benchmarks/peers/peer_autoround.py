"""Intel AutoRound's AutoScheme: its scores of FP8 against BF16, and the plans that its own search picks.

    python peer_autoround.py TASK.json RESULT.json

Its score of a module is sum |dL/dx (x - x_fp8)| + sum |dL/dW (W - W_fp8)|, gradients of the model with every
module in FP8, L the mean loss of a batch. The search is a dynamic program. Scores are read from the JSON
file in which it keeps them to solve for other budgets; the plans are the layer configurations that it makes.
Bits of scales are not counted (`ignore_scale_zp_bits`), as by the others. The head is not quantized. Its
FP8_STATIC scales weights per channel, where the others, and what is measured, have a scale per tensor.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from task import FUSED, GROUPINGS, Task, key

CACHE = tempfile.TemporaryDirectory()
os.environ["AR_AUTO_SCHEME_CACHE"] = CACHE.name  # read when it scores

import torch  # noqa: E402
from auto_round import AutoRound, AutoScheme  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: E402


def plan(task: Task, grouping: str, share: float) -> list[str]:
    """Let it choose for a share of the memory; return the modules in FP8. Only the first call scores."""
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(task.model)
    data = {
        "nsamples": len(task.rows),
        "seqlen": len(task.rows[0]),
        "batch_size": task.batch_size,
        "dataset": task.texts,
    }
    scheme = AutoScheme(
        avg_bits=16.0 - 8.0 * share,
        options="FP8_STATIC,BF16",
        shared_layers=list(map(list, FUSED.values())) if grouping == "fused" else None,
        ignore_scale_zp_bits=True,
        **data,
    )
    chosen = AutoRound(model, tokenizer, scheme=scheme, iters=0, device_map="cpu", **data)
    chosen.post_init()
    return [name for name, config in chosen.layer_config.items() if config["bits"] == 8]


def main() -> None:
    """Write scores of ops, and plans of both groupings."""
    task = Task.load(Path(sys.argv[1]))
    result: dict[str, Any] = {"version": version("auto-round"), "plans": {}, "seconds": {}}
    for grouping in GROUPINGS:
        start = time.process_time()
        result["plans"][grouping] = {
            "its own": {key(share): plan(task, grouping, share) for share in task.shares}
        }
        result["seconds"][grouping] = round(time.process_time() - start, 1)
    files = sorted(Path(CACHE.name).glob("*.json"))
    if len(files) != 1:
        sys.exit(f"it kept its scores in {len(files)} files; 1 was expected, of FP8")
    kept = json.loads(files[0].read_text())["layer_scores"]
    if set(kept) != set(task.elements):
        sys.exit(f"it scored other ops: {sorted(set(kept) ^ set(task.elements))}")
    result["scores"] = {op: score for op, (_, score) in kept.items()}
    Path(sys.argv[2]).write_text(json.dumps(result))


if __name__ == "__main__":
    main()
