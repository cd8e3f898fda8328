"""Does a threshold of the KL divergence hold? Plans from redrawn samples, measured on others.

    python tests/benchmarks/kl_threshold.py recipes/tiny-llama \
        recipes/tiny-llama/calibration.jsonl recipes/tiny-llama/heldout.jsonl

Each draw takes calibration samples of one pool, plans for `--kl`, with and without a confidence, and looks
at the mean KL of the plan on fresh samples of the pool. Judged: at most the threshold in 95 of
100 draws with `confidence: 0.95`, and at most 1.10 times in 95 without.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from held_out import FP8, SCALES, HeldOut, load, parser_of, samples_of

import inc_mp_plugin as mp
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.sensitivity.rounding import observe_rounding


class Outcome(NamedTuple):
    """A plan of one draw: measured KL divergence over the threshold, and its share of the largest gain."""

    ratio: float
    gain: float


def outcomes(
    heldout: HeldOut, gains: Gains, costs: Costs, options: object, confidence: float | None
) -> Iterator[Outcome]:
    """Plan and measure, draw by draw."""
    for seed in range(options.draws):
        order = np.random.default_rng(seed).permutation(len(heldout.samples))
        ours, fresh = order[: options.samples], order[options.samples :][: options.fresh]
        plan = mp.solve(gains, costs.take(ours), kl=options.kl, confidence=confidence)
        kl = float(heldout.change(plan.quantized, fresh).kl.mean())
        yield Outcome(kl / options.kl, plan.gain / plan.largest_gain)


def show(noise: str, confidence: float | None, drawn: list[Outcome]) -> None:
    """Print how often the threshold held, and the gain."""
    ratios, gains = np.array(drawn).T
    held, nearly = np.mean(ratios <= 1.0), np.mean(ratios <= 1.1)
    print(
        f"noise {noise:9s} confidence {confidence or 'none':5}  within {held:4.0%}  within 1.10 kl "
        f"{nearly:4.0%}  measured / kl: mean {ratios.mean():.3f}, 95th percentile "
        f"{np.quantile(ratios, 0.95):.3f}  gain {gains.mean():.1%}",
        flush=True,
    )


def main() -> None:
    """Print a line per noise and confidence."""
    parser = parser_of(__doc__, samples=64, fresh=128)
    parser.add_argument("--kl", type=float, default=0.001)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    model = load(options.model)
    pool = torch.cat([samples_of(path, 10**6, options) for path in (options.calibration, options.heldout)])
    batches = [{"input_ids": tokens} for tokens in pool.split(options.batch)]
    print(f"{len(pool)} samples: {options.samples} to plan, {options.fresh} others to measure")
    graph = mp.capture(model, batches[0])
    settings = {"scales": SCALES, "formats": (FP8,)}
    sensitivity = mp.measure_sensitivity(model, graph, batches, yardstick="kl", **settings)
    rounding = observe_rounding(model, graph, batches, None, **settings)
    heldout = HeldOut.of(model, rounding, pool, options.batch)
    gains = mp.memory_gains(graph, ("fp32", FP8))
    for noise in ("measured", "uniform"):
        for confidence in (None, 0.95):
            costs = Costs(sensitivity, noise)
            show(noise, confidence, list(outcomes(heldout, gains, costs, options, confidence)))


if __name__ == "__main__":
    main()
