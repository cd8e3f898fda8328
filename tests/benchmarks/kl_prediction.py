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

import argparse
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from routing import Routing, routers
from torch import Tensor, nn

import inc_mp_plugin as mp
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding, observe_rounding
from inc_mp_plugin.solver.uncertainty import predict

FP8, LEVEL = "fp8_e4m3", 0.95
SCALES = mp.Scales("maxabs_arbitrary", "cpu")
NOISES = ("measured", "uniform")


class Measured(NamedTuple):
    """KL divergence per token in nats, loss MSE, and share of the routed tokens that changed an expert."""

    kl: float
    loss: float
    flips: float


@dataclass(frozen=True)
class HeldOut:
    """The base model's log-probabilities of held-out tokens, and what plans change of them."""

    model: nn.Module
    rounding: Rounding
    batches: list[Tensor]
    base: list[Tensor]
    routing: Routing

    def measure(self, ops: Collection[str], *, routing_held: bool = False) -> Measured:
        """Measure the model with these ops rounded."""
        divergences, changes = [], []
        held = self.routing.held() if routing_held else self.routing.counted()
        formats = dict.fromkeys(ops, FP8)
        with as_measured(self.model), held, rounded(self.model, self.rounding, formats), torch.no_grad():
            for tokens, base in zip(self.batches, self.base, strict=True):
                change = base - log_probabilities(self.model, tokens)
                divergences.append((base.exp() * change).sum(dim=2).mean(dim=1))
                changes.append(change.gather(2, tokens[:, 1:, None]).squeeze(2).mean(dim=1))
        loss_mse = torch.cat(changes).square().mean()
        return Measured(float(torch.cat(divergences).mean()), float(loss_mse), self.routing.flip_share)


def log_probabilities(model: nn.Module, tokens: Tensor) -> Tensor:
    """Predict every token but the first, in FP64: small KL divergences are differences of large numbers."""
    return model(input_ids=tokens, use_cache=False).logits[:, :-1].double().log_softmax(dim=-1)


def held_out(model: nn.Module, rounding: Rounding, batches: list[Tensor]) -> HeldOut:
    """Run the base model on the held-out tokens."""
    routing = Routing(routers(model))
    with as_measured(model), routing.recorded(), torch.no_grad():
        base = [log_probabilities(model, tokens) for tokens in batches]
    return HeldOut(model, rounding, batches, base, routing)


def batches_of(path: str, count: int, options: argparse.Namespace) -> list[Tensor]:
    """Read samples of full length, in batches."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    texts = (json.loads(line)["text"] for line in Path(path).read_text(encoding="utf-8").splitlines())
    rows = (tokenizer(text).input_ids[: options.tokens] for text in texts)
    full = [row for row in rows if len(row) == options.tokens]
    return list(torch.tensor(full[:count]).split(options.batch))


def measurements(heldout: HeldOut, plans: list[tuple[str, ...]]) -> dict[str, dict[str, np.ndarray]]:
    """Measure KL and loss MSE of all plans: as the model routes, and with routing held where it has any."""
    kl, loss, flips = np.array([heldout.measure(plan) for plan in plans]).T
    print(f"{len(plans)} plans: {kl.min():.2e} to {kl.max():.2e} nats per token, loss MSE {loss.mean():.2e}")
    targets = {"": {"kl": kl, "loss": loss}}
    if heldout.routing.modules:
        print(f"tokens that change an expert of a layer: {flips.min():.2%} to {flips.max():.2%}")
        kl, loss, _ = np.array([heldout.measure(plan, routing_held=True) for plan in plans]).T
        targets[", routing held"] = {"kl": kl, "loss": loss}
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


def kept(
    heldout: HeldOut, plans: list[tuple[str, ...]], path: str | None
) -> dict[str, dict[str, np.ndarray]]:
    """Measure the plans, or read what an earlier run measured of the same plans."""
    if path is None or not Path(path).exists():
        targets = measurements(heldout, plans)
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name in ("model", "calibration", "heldout"):
        parser.add_argument(name)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--fresh", type=int, default=48, help="held-out samples")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plans", type=int, default=100)
    parser.add_argument("--apart", help="name of an op")
    parser.add_argument("--measured", help="file of what was measured, .npz")
    options = parser.parse_args()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    batches = [{"input_ids": tokens} for tokens in batches_of(options.calibration, options.samples, options)]
    fresh = batches_of(options.heldout, options.fresh, options)
    graph = mp.capture(model, batches[0])
    rounding = observe_rounding(model, graph, batches, None, scales=SCALES, formats=(FP8,))
    reached = [op.name for op in graph.ops if (op.name, 0) in rounding.maxabs]  # an expert may get no token
    plans = random_plans(reached, options.plans, seed=1)
    targets = kept(held_out(model, rounding, fresh), plans, options.measured)
    for yardstick, noise, predicted in predictions(model, graph, batches, plans, sum(map(len, fresh))):
        for how, measured in targets.items():
            for part, chosen in parts_of(plans, options.apart).items():
                show(f"{yardstick}, noise {noise}{how}{part}", predicted[chosen], measured[yardstick][chosen])


if __name__ == "__main__":
    main()
