"""Predicted against measured: KL divergence and loss MSE of random plans, on held-out samples.

    python tests/benchmarks/kl_prediction.py recipes/tiny-llama \
        recipes/tiny-llama/calibration.jsonl recipes/tiny-llama/heldout.jsonl

Judged (of the KL divergence with measured noise): log-correlation at least 0.998, ratio of means 0.9 to 1.1,
spread of the ratio at most 0.05. A mixture of experts is measured once more with every token
sent to the experts that it goes to in the base model: the difference is what routing that flips adds.
`--apart OP` shows the plans with and without one op (such as the head) by themselves; `--measured FILE.npz`
keeps what was measured, and a second run with it only predicts.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from held_out import FP8, SCALES, Change, HeldOut, load, parser_of, samples_of
from routing import Routing, routers
from torch import nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.solver.uncertainty import predict

LEVEL = 0.95
NOISES = ("measured", "uniform")
Targets = dict[str, dict[str, np.ndarray]]


def means(change: Change) -> tuple[float, float]:
    """Compute the KL divergence per token, and the loss MSE."""
    return float(change.kl.mean()), float(np.square(change.loss).mean())


def measurements(heldout: HeldOut, routing: Routing, plans: list[tuple[str, ...]]) -> Targets:
    """Measure KL and loss MSE of all plans: as the model routes, and with routing held where it has any."""

    def measure(plan: Collection[str]) -> tuple[float, float, float]:
        return *means(heldout.change(plan, around=routing.counted())), routing.flip_share

    kl, loss, flips = np.array([measure(plan) for plan in plans]).T
    print(f"{len(plans)} plans: {kl.min():.2e} to {kl.max():.2e} nats per token, loss MSE {loss.mean():.2e}")
    targets = {"": {"kl": kl, "loss": loss}}
    if routing.modules:
        print(f"tokens that change an expert of a layer: {flips.min():.2%} to {flips.max():.2%}")
        held = [means(heldout.change(plan, around=routing.held())) for plan in plans]
        targets[", routing held"] = dict(zip(("kl", "loss"), np.array(held).T, strict=True))
    return targets


def predictions(
    model: nn.Module, graph: Graph, batches: list[dict], plans: list[tuple[str, ...]], fresh: int
) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield yardstick, noise, and prediction and interval of each plan, shape (plans, 3)."""
    loss = mp.measure_sensitivity(model, graph, batches, yardstick="both", scales=SCALES, formats=(FP8,))
    for noise in NOISES:
        for yardstick, priced in (("kl", KLModel(loss.kl, noise)), ("loss", LossModel(loss, noise))):
            found = [
                predict(priced, dict.fromkeys(plan, FP8), "fp32", level=LEVEL, measured=fresh)
                for plan in plans
            ]
            yield yardstick, noise, np.array([(value, *interval) for value, interval in found])


def parts_of(plans: list[tuple[str, ...]], op: str | None) -> dict[str, np.ndarray]:
    """List the plans that stand in one line: all, and those with and without the op."""
    parts = {"": np.ones(len(plans), dtype=bool)}
    if op is not None:
        parts[f", with {op}"] = np.array([op in plan for plan in plans])
        parts[f", without {op}"] = ~parts[f", with {op}"]
    return parts


def kept(heldout: HeldOut, routing: Routing, plans: list[tuple[str, ...]], path: str | None) -> Targets:
    """Measure the plans, or read what an earlier run measured of the same plans."""
    if path is None or not Path(path).exists():
        targets = measurements(heldout, routing, plans)
        if path is not None:
            arrays = {f"{kind}|{how}": rows[kind] for how, rows in targets.items() for kind in rows}
            np.savez(path, plans=json.dumps(plans), **arrays)
        return targets
    with np.load(path) as stored:
        if json.loads(str(stored["plans"])) != [list(plan) for plan in plans]:
            message = f"{path} holds other plans: remove it, or give its model, data and --plans"
            raise SystemExit(message)
        names = [name.split("|") for name in stored if "|" in name]
        hows = dict.fromkeys(how for _, how in names)
        return {how: {kind: stored[f"{kind}|{how}"] for kind, same in names if same == how} for how in hows}


def show(name: str, predicted: np.ndarray, measured: np.ndarray) -> None:
    """Print how well one yardstick is predicted."""
    value, low, high = predicted.T
    logs = np.log(value / measured)
    correlation = np.corrcoef(np.log(value), np.log(measured))[0, 1]
    inside = int(((low <= measured) & (measured <= high)).sum())
    ratio = value.mean() / measured.mean()
    print(
        f"{name:46s} log-correlation {correlation:.4f}   predicted / measured {ratio:.3f}   "
        f"spread {logs.std():.3f}   within {LEVEL:.0%} interval {inside} of {len(logs)}",
        flush=True,
    )


def main() -> None:
    """Print a line for each yardstick and model of the noise."""
    parser = parser_of(__doc__, samples=48, fresh=48)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--apart", help="name of an op")
    parser.add_argument("--measured", help="file of what was measured, .npz")
    options = parser.parse_args()
    model = load(options.model)
    samples = samples_of(options.calibration, options.samples, options)
    batches = [{"input_ids": tokens} for tokens in samples.split(options.batch)]
    fresh = samples_of(options.heldout, options.fresh, options)
    graph = mp.capture(model, batches[0])
    rounding = observe_rounding(model, graph, batches, None, scales=SCALES, formats=(FP8,))
    reached = [op.name for op in graph.ops if (op.name, 0) in rounding.maxabs]  # an expert may get no token
    plans = random_plans(reached, options.plans, seed=1)
    routing = Routing(routers(model))
    heldout = HeldOut.of(model, rounding, fresh, options.batch, routing.recorded())
    targets = kept(heldout, routing, plans, options.measured)
    for yardstick, noise, predicted in predictions(model, graph, batches, plans, len(fresh)):
        for how, measured in targets.items():
            for part, chosen in parts_of(plans, options.apart).items():
                show(f"{yardstick}, noise {noise}{how}{part}", predicted[chosen], measured[yardstick][chosen])


if __name__ == "__main__":
    main()
