"""A sensitivity pass of a BF16 or FP16 model with torch's own kernels, and with products in FP32.

    python tests/benchmarks/products_in_fp32.py --dtype float16
    ONEDNN_MAX_CPU_ISA=AVX2 python tests/benchmarks/products_in_fp32.py --dtype bfloat16

The second line lets oneDNN work as on a CPU without BF16 instructions. Times are of the CPU, in one run.
"""

from __future__ import annotations

import argparse
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.sensitivity import taylor
from inc_mp_plugin.sensitivity.effort import faster_in_fp32


def main() -> None:
    """Print both times, what is decided, and how far sensitivities differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["bfloat16", "float16"], default="float16")
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=options.hidden,
        intermediate_size=2 * options.hidden,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).to(getattr(torch, options.dtype)).eval()
    batches = [{"input_ids": torch.randint(0, 4096, (2, 128))}]
    graph = mp.capture(model, batches[0])
    totals, seconds = [], []
    for in_fp32 in (False, True):
        taylor.faster_in_fp32 = lambda *_, decided=in_fp32: decided
        start = time.process_time()
        result = mp.measure_sensitivity(model, graph, batches, yardstick="kl", estimate=Estimate("batch"))
        seconds.append(time.process_time() - start)
        totals.append(result.input + result.weight)
    off = float((abs(totals[1] - totals[0]) / totals[0]).max())
    print(f"{options.dtype}: {seconds[0]:.2f} s by its own kernels, {seconds[1]:.2f} s in FP32")
    print(f"decided for FP32: {faster_in_fp32(model, graph)}; an op differs by {100 * off:.1f} % at most")


if __name__ == "__main__":
    main()
