"""The cost of a plan's losses, in plain forward passes with loss: many plans together, and one by one.

    python tests/benchmarks/plans_together.py
    python tests/benchmarks/plans_together.py --layers 6 --tokens 64

A Llama of SmolLM2-135M's shape with random weights, in FP32: 24 random plans, and plans of one op each, as
ALPS has them. CPU time of one process; ratios to plain passes on the same batches, run before and after.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping, Sequence

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

    def alone(self, plans: Plans) -> list[torch.Tensor]:
        """Measure plans one by one; return their losses of the first batch."""
        losses = []
        for plan in plans:
            with rounded(self.model, self.rounding, plan):
                each = [sample_losses(self.model, batch, None) for batch in self.batches]
            losses.append(each[0])
        return losses


def main() -> None:
    """Print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=128, help="of each of two samples")
    parser.add_argument("--batches", type=int, default=4)
    given = parser.parse_args()
    bench, kept = Bench(given.layers, given.tokens, given.batches), {}
    ops = [op.name for op in bench.graph.ops]
    many = [dict.fromkeys(plan, FORMAT) for plan in random_plans(ops, PLANS, 0)]
    single = [{op: FORMAT} for op in ops]

    def timed(name: str, run: object, *arguments: object) -> float:
        return cpu_seconds(lambda: kept.update({name: run(*arguments)}))

    with as_measured(bench.model), torch.no_grad():
        bench.plain()
        plain = [cpu_seconds(bench.plain)]
        seconds = {
            f"{PLANS} random plans together": timed("many", bench.together, many, given.batches) / PLANS,
            f"{ALONE} of them one by one": timed("alone", bench.alone, many[:ALONE]) / ALONE,
        }
        plain.append(cpu_seconds(bench.plain))
        # One batch of these is enough: there are more of them.
        one_batch = timed("single", bench.together, single, 1) * given.batches
        seconds[f"{len(single)} plans of one op together"] = one_batch / len(single)
        seconds[f"{ALONE} of them one by one "] = timed("one", bench.alone, single[:ALONE]) / ALONE
        plain.append(cpu_seconds(bench.plain))
    for pair in (("many", "alone"), ("single", "one")):
        assert all(map(torch.equal, *(kept[name][:ALONE] for name in pair)))
    base = statistics.median(plain)
    print(f"{given.batches} batches of 2 x {given.tokens} tokens: a plain pass takes {base:.2f} s")
    for name, value in seconds.items():
        print(f"{name}: {value / base:.3f} plain passes each")
    print("losses are the same both ways, bit for bit")


if __name__ == "__main__":
    main()
