"""The cost of a plan's losses, in plain forward passes with loss: many plans together, and one by one.

    python tests/benchmarks/plans_together.py
    python tests/benchmarks/plans_together.py --layers 6 --tokens 64

A Llama of SmolLM2-135M's shape with random weights, in FP32: 24 random plans, and plans of one op each, as
ALPS has them. CPU time of one process; ratios to plain passes on the same batches, run before and after.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Mapping, Sequence

import torch
import transformers
from clock import cpu_seconds

from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.graph.capture import capture
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.outcome import Outcome
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding

FORMAT, PLANS, ALONE = "fp8_e4m3", 24, 3
Plans = Sequence[Mapping[str, str]]


def smollm2(layers: int) -> transformers.LlamaForCausalLM:
    """A model of SmolLM2-135M's shape, which has 30 layers."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
    )
    return transformers.LlamaForCausalLM(config).eval()


class Bench:
    """A model and its batches, and the ways to measure plans on them."""

    def __init__(self, layers: int, tokens: int, batches: int) -> None:
        """Make the model, and take the scales from its batches."""
        self.model = smollm2(layers)
        self.batches = [{"input_ids": torch.randint(0, 49152, (2, tokens))} for _ in range(batches)]
        self.graph = capture(self.model, self.batches[0])
        maxabs = observe_maxabs(self.model, self.graph, self.batches, None)
        self.rounding = Rounding(Scales("maxabs_pow2", "cpu"), (FORMAT,), maxabs)

    def plain(self) -> None:
        """Run every batch in the base format."""
        for batch in self.batches:
            sample_losses(self.model, batch, None)

    def together(self, plans: Plans, batches: int) -> list[torch.Tensor]:
        """Measure plans side by side on some batches; return the losses of the first."""
        runs = PlanRuns(self.model, self.graph, self.rounding, as_used=False)
        losses: dict[int, torch.Tensor] = {}
        for number, batch in enumerate(self.batches[:batches]):

            def run(batch: dict = batch) -> Outcome:
                return Outcome(sample_losses(self.model, batch, None), None)

            for members, result in runs.results(plans, run, lambda: None):
                if not number:
                    losses |= dict.fromkeys(members, result.losses)
        return [losses[number] for number in range(len(plans))]

    def alone(self, plans: Plans, batches: int, *, as_used: bool = False) -> list[torch.Tensor]:
        """Measure plans one by one on some batches; return their losses of the first."""
        losses = []
        for plan in plans:
            with rounded(self.model, self.rounding, plan, as_used=as_used):
                each = [sample_losses(self.model, batch, None) for batch in self.batches[:batches]]
            losses.append(each[0])
        return losses


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128, help="of each of two samples")
    parser.add_argument("--batches", type=int, default=4)
    parser.add_argument("--plans", choices=["random", "single"], nargs="+", default=["random", "single"])
    given = parser.parse_args()
    bench = Bench(given.layers, given.tokens, given.batches)
    ops = [op.name for op in bench.graph.ops]
    random = [dict.fromkeys(plan, FORMAT) for plan in random_plans(ops, PLANS, 0)]
    plans = {"random": random, "single": [{op: FORMAT} for op in ops]}
    with as_measured(bench.model), torch.no_grad():
        bench.plain()
        for name in given.plans:
            compare(bench, name, plans[name], given.batches)


def compare(bench: Bench, name: str, plans: Plans, batches: int) -> None:
    """Print what plans cost, and check that their losses are the same both ways.

    Args:
        bench: the model.
        name: of the plans.
        plans: of which a few run one by one.
        batches: number of batches.
    """
    few, losses = plans[:: len(plans) // ALONE], []

    def seconds(run: Callable[[], list[torch.Tensor]], runs: int) -> float:
        return cpu_seconds(lambda: losses.append(run())) / runs

    plain = [cpu_seconds(bench.plain) / batches]
    together = seconds(lambda: bench.together(plans, batches), batches * len(plans))
    plain.append(cpu_seconds(bench.plain) / batches)
    alone = {
        f"one by one on {batches} batches": seconds(lambda: bench.alone(few, batches), batches * len(few)),
        "one by one on a batch": seconds(lambda: bench.alone(few, 1), len(few)),
        "one by one, weights rounded as they are used": seconds(
            lambda: bench.alone(few, 1, as_used=True), len(few)
        ),
    }
    plain.append(cpu_seconds(bench.plain) / batches)
    first, *others = losses
    for each in others:
        assert all(map(torch.equal, first[:: len(plans) // ALONE], each))
    base = statistics.median(plain)
    print(f"{name}: {len(plans)} plans, a plain pass takes {base:.2f} s; in plain passes, each plan takes")
    for way, value in {f"together on {batches} batches": together, **alone}.items():
        print(f"    {way}: {value / base:.3f}")


if __name__ == "__main__":
    main()
