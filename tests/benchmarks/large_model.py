"""Planning at the size of Llama-3.1-405B: capture, partition and the exact solve, without weights.

    python tests/benchmarks/large_model.py

Gains are the theoretical time of every configuration of every group, losses are drawn at random, so
the program has the size and the ties of a real one: 505 groups, 5,042 configurations.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from inc_mp_plugin.gain.per_op import seconds_per_mac
from inc_mp_plugin.graph.partition import partition
from inc_mp_plugin.solver.milp import Candidate, choose


def skeleton(layers: int) -> LlamaForCausalLM:
    """Llama-3.1-405B's shape, on the meta device."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=layers,
        num_attention_heads=128,
        num_key_value_heads=8,
        max_position_embeddings=131072,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def candidates(graph: mp.Graph, draw: random.Random) -> list[list[Candidate]]:
    """Every configuration of every group, with its gain in seconds and a random loss."""
    saved_s = seconds_per_mac("gaudi2", "bf16") - seconds_per_mac("gaudi2", "fp8_e4m3")
    groups = []
    for group in graph.groups:
        gains = [graph.by_name[op].macs * saved_s for op in group]
        losses = [math.exp(draw.gauss(0.0, 1.5)) for _ in group]
        groups.append(
            [
                Candidate(
                    sum(g for g, low in zip(gains, lowered, strict=True) if low),
                    sum(d for d, low in zip(losses, lowered, strict=True) if low),
                )
                for lowered in itertools.product((False, True), repeat=len(group))
            ]
        )
    return groups


def chain(layers: int) -> tuple[dict[str, list[str]], set[str]]:
    """The data flow of a Llama, as the partition alone sees it: about 60 vertices a layer."""
    predecessors: dict[str, list[str]] = {"embed": []}
    ops: set[str] = set()

    def add(name: str, *above: str) -> str:
        predecessors[name] = list(above)
        return name

    x = "embed"
    for i in range(layers):
        for part in range(12):
            x = add(f"{i}.norm{part}", x)
        heads = []
        for op in "qkv":
            y = add(f"{i}.{op}", x)
            ops.add(y)
            for part in range(8):
                y = add(f"{i}.{op}{part}", y)
            heads.append(y)
        qk = add(f"{i}.qk", heads[0], heads[1])
        av = add(f"{i}.av", add(f"{i}.softmax", qk), heads[2])
        o = add(f"{i}.o", av)
        h = add(f"{i}.add", o, x)
        gate, up = add(f"{i}.gate", h), add(f"{i}.up", h)
        down = add(f"{i}.down", add(f"{i}.mul", gate, up))
        ops |= {qk, av, o, gate, up, down}
        x = add(f"{i}.end", down, h)
    return predecessors, ops


def main() -> None:
    """Print the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=126)
    layers = parser.parse_args().layers
    model = skeleton(layers)
    start = time.perf_counter()
    graph = mp.capture(model, {"input_ids": torch.zeros(1, 256, dtype=torch.long)})
    print(f"capture and partition: {time.perf_counter() - start:.1f} s (wanted: at most 15 s)")
    predecessors, ops = chain(layers)
    start = time.perf_counter()
    partition(predecessors, ops)
    seconds = time.perf_counter() - start
    print(f"partition of {len(predecessors)} vertices: {seconds:.3f} s (wanted: at most 0.2 s)")
    slowest = 0.0
    for seed, share in itertools.product(range(5), (0.02, 0.1, 0.3, 0.6, 0.9)):
        groups = candidates(graph, random.Random(seed))
        total = sum(max(c.cost for c in group) for group in groups)
        slowest = max(slowest, choose(groups, share * total).seconds)
    print(
        f"exact solve of {len(groups)} groups, {sum(map(len, groups))} configurations: "
        f"at most {slowest:.3f} s over 25 instances (wanted: at most 0.5 s)"
    )


if __name__ == "__main__":
    main()
