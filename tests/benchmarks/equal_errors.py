"""What equal rounding errors add: predicted KL divergence with and without them, against measured.

    python tests/benchmarks/equal_errors.py recipes/tiny-llama \
        recipes/tiny-llama/calibration.jsonl recipes/tiny-llama/calibration.jsonl --fresh 64

On the calibration samples themselves, as here, nothing but the drawn labels scatters. A line for each plan
that is chosen for a threshold, and for each set of ops that read one tensor, all in FP8: measured / predicted
where what ops cost more together counts, and where each op counts by itself.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from held_out import FP8, SCALES, HeldOut, load, parser_of, samples_of

import inc_mp_plugin as mp
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.solver.uncertainty import predict

THRESHOLDS = (0.0005, 0.001, 0.002)


def readers_of(sensitivity: Sensitivity) -> list[list[str]]:
    """List the sets of ops that read one tensor."""
    reads = np.array(sensitivity.reads)
    sets = (np.flatnonzero(reads == number) for number in np.unique(reads[reads >= 0]))
    return [[sensitivity.ops[column] for column in columns] for columns in sets]


def show(name: str, ops: Collection[str], sensitivity: Sensitivity, heldout: HeldOut) -> None:
    """Measure and print one set of ops."""
    measured = float(heldout.change(ops).kl.mean())
    apart = replace(sensitivity, shared={}, reads=None)
    models = [KLModel(each, "measured") for each in (sensitivity, apart)]
    together, alone = (predict(model, dict.fromkeys(ops, FP8), "fp32")[0] for model in models)
    ratios = f"measured / predicted {measured / together:.3f}, each op by itself {measured / alone:.3f}"
    print(f"{name:60s} {measured:.2e} nats; {ratios}", flush=True)


def main() -> None:
    """Print all lines."""
    options = parser_of(__doc__, samples=64, fresh=128).parse_args()
    model = load(options.model)
    samples = samples_of(options.calibration, options.samples, options)
    batches = [{"input_ids": tokens} for tokens in samples.split(options.batch)]
    graph = mp.capture(model, batches[0])
    settings = {"scales": SCALES, "formats": (FP8,)}
    sensitivity = mp.measure_sensitivity(model, graph, batches, yardstick="kl", **settings)
    rounding = observe_rounding(model, graph, batches, None, **settings)
    fresh = samples_of(options.heldout, options.fresh, options)
    heldout = HeldOut.of(model, rounding, fresh, options.batch)
    gains = mp.memory_gains(graph, ("fp32", FP8))
    for kl in THRESHOLDS:
        plan = mp.solve(gains, Costs(sensitivity, "measured"), kl=kl)
        show(f"plan for kl {kl:g}: {len(plan.quantized)} ops", plan.quantized, sensitivity, heldout)
    for ops in readers_of(sensitivity):
        first, *others = ops
        show(", ".join([first, *(op.rpartition(".")[2] for op in others)]), ops, sensitivity, heldout)


if __name__ == "__main__":
    main()
