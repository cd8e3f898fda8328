"""Cost of the sensitivity pass with experts: CPU seconds against plain forward and backward.

    python tests/benchmarks/experts.py

Once for a Qwen3-MoE with 128 experts of which a token is sent to 8, once for a dense Qwen3 whose multilayer
perceptron is as wide as 8 experts: the loss, sample by sample, and the KL divergence of whole batches. All
runs go through the same batches in one process, in turn, so the ratios hold where the machine's speed drifts;
on one thread, for threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from clock import plain, ratios
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate

EXPERTS, ACTIVE = 128, 8
# The most that each may take with experts, in units of forward and backward with all weight gradients.
MODES = {
    "loss by samples": (2.0, {}),
    "kl by batches": (1.2, {"yardstick": "kl", "estimate": Estimate("batch")}),
}


def build(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Both models with random weights: what they are does not change the time."""
    sizes = {
        "vocab_size": 1024,
        "hidden_size": options.hidden,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden // 64,
        "num_key_value_heads": options.hidden // 128,
        "head_dim": 64,
        "attn_implementation": "eager",
    }
    inner = options.inner
    experts = {"num_experts": EXPERTS, "num_experts_per_tok": ACTIVE, "moe_intermediate_size": inner}
    return {
        "experts": Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **experts)).eval(),
        "dense": Qwen3ForCausalLM(Qwen3Config(**sizes, intermediate_size=ACTIVE * inner)).eval(),
    }


def main() -> None:
    """Print the median ratio of each mode, and the ratios of all pairs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--inner", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = build(options)
    shape = (8, options.tokens)
    batches = [{"input_ids": torch.randint(0, 1024, shape)} for _ in range(options.batches)]
    graphs = {name: mp.capture(model, batches[0]) for name, model in models.items()}
    for name, model in models.items():
        plain(model, batches[:1])
        for mode, (most, keywords) in MODES.items():
            measure = partial(mp.measure_sensitivity, model, graphs[name], **keywords)
            aim = f"; at most {most}" if name == "experts" else ""
            print(f"{name:8} {mode:16} {ratios(measure, model, batches, options.pairs)}{aim}", flush=True)


if __name__ == "__main__":
    main()
