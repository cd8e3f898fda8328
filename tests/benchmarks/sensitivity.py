"""Cost of the sensitivity pass: CPU seconds against plain forward and backward.

    python tests/benchmarks/sensitivity.py

Both run the same batches of the same model in one process, in turn, so the ratios hold where the
machine's speed drifts; on one thread, for threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from clock import plain, ratios
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate

FP8 = {"scales": mp.Scales("maxabs_arbitrary", "cpu"), "formats": ("fp8_e4m3",)}
BATCH, LOW = Estimate("batch"), {"memory": "low"}
# The most that each may take, in units of forward and backward with the gradients of all weights.
MODES = {
    "loss, uniform": (1.10, {}),
    "kl by batches, uniform": (1.10, {"yardstick": "kl", "estimate": BATCH}),
    "kl by samples, uniform": (1.10, {"yardstick": "kl"}),
    "kl by batches, measured": (1.45, {"yardstick": "kl", "estimate": BATCH, **FP8}),
    "kl by samples, measured": (1.45, {"yardstick": "kl", **FP8}),
    "both, kl by batches, uniform": (1.80, {"yardstick": "both", "estimate": BATCH}),
    "both, kl by samples, uniform": (1.80, {"yardstick": "both"}),
    "low, loss, uniform": (1.45, LOW),
    "low, kl by batches, uniform": (1.45, {"yardstick": "kl", "estimate": BATCH, **LOW}),
    "low, kl by samples, uniform": (1.45, {"yardstick": "kl", **LOW}),
    "low, kl by batches, measured": (1.80, {"yardstick": "kl", "estimate": BATCH, **FP8, **LOW}),
}


def build(layers: int, hidden: int) -> LlamaForCausalLM:
    """A Llama of random weights: what they are does not change the time."""
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=hidden,
        intermediate_size=hidden * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 128,
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config).eval()


def main() -> None:
    """Print the median ratio of each mode, and the ratios of all pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", default="", help="modes whose name holds this text")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(options.layers, options.hidden)
    shape = (8, options.tokens)
    batches = [{"input_ids": torch.randint(0, 4096, shape)} for _ in range(options.batches)]
    graph = mp.capture(model, batches[0])
    plain(model, batches[:1])
    for name, (most, keywords) in MODES.items():
        if options.only not in name:
            continue
        measure = partial(mp.measure_sensitivity, model, graph, **keywords)
        print(f"{name:34} {ratios(measure, model, batches, options.pairs)}; at most {most}", flush=True)


if __name__ == "__main__":
    main()
