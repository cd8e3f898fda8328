"""Part d: the sensitivity pass against plain forward and backward passes, and its memory, high and low."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import inc_mp_plugin as mp
from device.machine import Part
from device.values import error
from inc_mp_plugin.model.losses import language_model_loss

_COMMON = {"vocab_size": 128256, "num_key_value_heads": 8, "attn_implementation": "eager"}
SHAPES = {
    "1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
    },
    "8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
}
TINY = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SAMPLES, TOKENS, BATCHES, ROUNDS = 4, 512, 2, 3
MEMORIES = ("high", "low")
NEEDS_GIB = {"1B": 20, "8B": 60}


def build(sizes: dict[str, int], part: Part) -> nn.Module:
    """A Llama of random weights in BF16, made where it runs."""
    common = {"vocab_size": 96, "num_key_value_heads": 2} if part.cpu else _COMMON
    config = LlamaConfig(**{**_COMMON, **common, **sizes}, tie_word_embeddings=sizes["hidden_size"] < 4096)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(part.device):
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def plain(model: nn.Module, batches: list[dict]) -> None:
    """Forward and backward passes, with the gradients of all weights."""
    for batch in batches:
        language_model_loss(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)


def measured(run: Callable[[], object], part: Part) -> tuple[float, float]:
    """Seconds of a call, and the peak of its memory in GiB (0 on a CPU)."""
    if part.cpu:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started, 0.0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - started, torch.cuda.max_memory_allocated() / 2**30


def compare(sizes: dict[str, int], part: Part) -> dict[str, object]:
    """All passes in turn, in rounds; the first round warms up and does not count."""
    torch.manual_seed(0)
    model = build(sizes, part)
    tokens = 12 if part.cpu else TOKENS
    shape = (BATCHES, SAMPLES, tokens)
    ids = torch.randint(0, model.config.vocab_size, shape, device=part.device)
    batches = [{"input_ids": batch} for batch in ids]
    started = time.perf_counter()
    graph = mp.capture(model, batches[0])
    capture_s = time.perf_counter() - started
    squares: dict[str, torch.Tensor] = {}

    def sensitivities(memory: str) -> None:
        result = mp.measure_sensitivity(model, graph, batches, memory=memory)
        squares[memory] = torch.from_numpy(result.input + result.weight)

    runs = {"plain": partial(plain, model, batches), **{m: partial(sensitivities, m) for m in MEMORIES}}
    rounds: list[dict[str, tuple[float, float]]] = []
    for number in range(ROUNDS + 1):
        taken = {name: measured(run, part) for name, run in runs.items()}
        rounds += [taken] * (number > 0)
        if part.left_s < 2 * sum(seconds for seconds, _ in taken.values()) and rounds:
            break
    return {
        "ops": len(graph.ops),
        "samples": BATCHES * SAMPLES,
        "tokens": tokens,
        "capture_s": capture_s,
        "rounds": len(rounds),
        **{f"{name}_s": statistics.median(taken[name][0] for taken in rounds) for name in runs},
        **{
            f"{name}_ratio": statistics.median(taken[name][0] / taken["plain"][0] for taken in rounds)
            for name in MEMORIES
        },
        **{f"{name}_peak_gib": rounds[-1][name][1] for name in runs},
        "difference": error(squares["low"], squares["high"]),
    }


def main() -> None:
    """Measure the smaller shape, then the larger one if it fits."""
    part = Part()
    for name, sizes in {"tiny": TINY}.items() if part.cpu else SHAPES.items():
        if not part.cpu:
            free_gib = torch.cuda.mem_get_info()[0] / 2**30
            if free_gib < NEEDS_GIB[name] or part.left_s < 30:
                why = f"{free_gib:.0f} GiB and {part.left_s:.0f} s are left"
                part.content[name] = {"reason": f"{why}; {NEEDS_GIB[name]} GiB and 30 s are needed"}
                continue
        try:
            part.content[name] = compare(sizes, part)
        except torch.OutOfMemoryError as error:
            part.content[name] = {"reason": " ".join(str(error).split())[:200]}
        part.save()
        if not part.cpu:
            torch.cuda.empty_cache()
    part.save()


if __name__ == "__main__":
    main()
