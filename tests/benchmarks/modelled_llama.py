"""Modelled time of Llama-3.1-8B in BF16, and what FP8 saves, on Gaudi 2 and 3; from its configuration.

python tests/benchmarks/modelled_llama.py
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import transformers

import inc_mp_plugin as mp
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.gain.roofline import gemm_s

CONFIG = Path(__file__).parents[2] / "recipes" / "configs" / "llama-3.1-8b"
BATCH, PROMPT, CACHED = 8, 2048, 2176


def main() -> None:
    """Print the times."""
    config = transformers.AutoConfig.from_pretrained(CONFIG)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    prompt = {"input_ids": torch.zeros(BATCH, PROMPT, dtype=torch.long), "logits_to_keep": 1}
    step = {"input_ids": torch.zeros(BATCH, 1, dtype=torch.long)}
    graphs = {
        f"prompt, {BATCH} x {PROMPT} tokens": mp.capture(model, prompt),
        f"decode step, {CACHED} tokens cached": mp.capture(model, step, cached_tokens=CACHED),
    }
    for title, graph in graphs.items():
        for device in ("gaudi2", "gaudi3"):
            peaks = ACCELERATORS[device]
            base = math.fsum(gemm_s(g, "bf16", "bf16", peaks) for op in graph.ops for g in op.gemms)
            groups = mp.roofline_gains(graph, device=device).groups
            everything = math.fsum(group.gain[-1] for group in groups)
            best = math.fsum(max(group.gain) for group in groups)
            saved = [f"{1e3 * s:6.1f} ms ({100 * s / base:.0f} %)" for s in (everything, best)]
            print(
                f"{title}, {device}: {1e3 * base:7.1f} ms in BF16; all FP8 saves {saved[0]}, "
                f"the best choice {saved[1]}"
            )


if __name__ == "__main__":
    main()
