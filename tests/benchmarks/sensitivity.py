"""Cost of the sensitivity pass: CPU seconds against plain forward and backward.

    python tests/benchmarks/sensitivity.py

Both run the same batches of the same model in one process, in turn, so the ratios hold where the
machine's speed drifts; on one thread, for threads that wait for each other count as busy.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.model.losses import language_model_loss


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


def plain(model: LlamaForCausalLM, batches: list[dict]) -> None:
    """Forward and backward of every batch, with the gradients of all weights."""
    for batch in batches:
        language_model_loss(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)


def cpu_seconds(run: object, *arguments: object) -> float:
    """CPU time of one call, over all threads."""
    start = time.process_time()
    run(*arguments)
    return time.process_time() - start


def main() -> None:
    """Print the ratio, pair by pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = build(options.layers, options.hidden)
    shape = (8, options.tokens)
    batches = [{"input_ids": torch.randint(0, 4096, shape)} for _ in range(options.batches)]
    graph = mp.capture(model, batches[0])
    plain(model, batches[:1])
    mp.measure_sensitivity(model, graph, batches[:1])
    ratios = []
    for _ in range(options.pairs):
        base = cpu_seconds(plain, model, batches)
        ours = cpu_seconds(mp.measure_sensitivity, model, graph, batches)
        ratios.append(ours / base)
        print(f"plain {base:6.1f} s   sensitivity {ours:6.1f} s   ratio {ratios[-1]:.3f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.3f} (wanted: at most 1.10)")


if __name__ == "__main__":
    main()
