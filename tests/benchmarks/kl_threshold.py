"""Does a threshold of the KL divergence hold? Plans from redrawn samples, measured on others.

    python tests/benchmarks/kl_threshold.py recipes/tiny-llama \
        recipes/tiny-llama/calibration.jsonl recipes/tiny-llama/heldout.jsonl

Each draw takes calibration samples of one pool, plans for `--kl`, with and without a confidence, and looks
at the mean KL of the plan on fresh samples of the pool. Judged: at most the threshold in 95 of
100 draws with `confidence: 0.95`, and at most 1.10 times in 95 without.
"""

from __future__ import annotations

import argparse
from functools import cache

import numpy as np
import torch
import transformers
from kl_prediction import FP8, SCALES, batches_of, log_probabilities

import inc_mp_plugin as mp
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import observe_rounding


def main() -> None:
    """Print, per noise and confidence, how often the threshold held, and the gain."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "calibration", "heldout"):
        parser.add_argument(name)
    parser.add_argument("--kl", type=float, default=0.001)
    parser.add_argument("--samples", type=int, default=64, help="of calibration, in each draw")
    parser.add_argument("--fresh", type=int, default=128, help="that a plan is measured on, in each draw")
    parser.add_argument("--pool", type=int, default=320)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    halves = [batches_of(path, options.pool // 2, options) for path in (options.calibration, options.heldout)]
    batches = [tokens for half in halves for tokens in half]
    pool = [{"input_ids": tokens} for tokens in batches]
    graph = mp.capture(model, pool[0])
    sensitivity = mp.measure_sensitivity(model, graph, pool, yardstick="kl", scales=SCALES, formats=(FP8,))
    rounding = observe_rounding(model, graph, pool, None, scales=SCALES, formats=(FP8,))
    gains = mp.memory_gains(graph, ("fp32", FP8))
    with as_measured(model), torch.no_grad():
        base = [log_probabilities(model, tokens) for tokens in batches]

    @cache
    def divergences(ops: tuple[str, ...]) -> np.ndarray:
        """KL per token of every sample of the pool."""
        parts = []
        with as_measured(model), rounded(model, rounding, dict.fromkeys(ops, FP8)), torch.no_grad():
            for tokens, before in zip(batches, base, strict=True):
                change = before - log_probabilities(model, tokens)
                parts.append((before.exp() * change).sum(dim=2).mean(dim=1))
        return torch.cat(parts).numpy()

    count = len(sensitivity.loss)
    for noise in ("measured", "uniform"):
        for confidence in (None, 0.95):
            ratios, shares = [], []
            for seed in range(options.draws):
                order = np.random.default_rng(seed).permutation(count)
                ours, fresh = order[: options.samples], order[options.samples :][: options.fresh]
                costs = Costs(sensitivity.take(ours), noise)
                plan = mp.solve(gains, costs, kl=options.kl, confidence=confidence)
                ratios.append(float(divergences(plan.quantized)[fresh].mean()) / options.kl)
                shares.append(plan.gain / plan.largest_gain)
            held, nearly = np.mean(np.array(ratios) <= 1.0), np.mean(np.array(ratios) <= 1.1)
            print(
                f"noise {noise:9s} confidence {confidence or 'none':5}  within {held:4.0%}  within 1.10 kl "
                f"{nearly:4.0%}  measured / kl: mean {np.mean(ratios):.3f}, 95th percentile "
                f"{np.quantile(ratios, 0.95):.3f}  gain {np.mean(shares):.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
