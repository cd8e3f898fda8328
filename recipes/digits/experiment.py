"""4-bit and 2-bit mixes of a small network, planned by several methods and fine-tuned: one command.

    python recipes/digits/experiment.py --out runs/digits [--reduced]

For every seed: train a residual network on handwritten digits in FP32, fine-tune it with all ops in 4
bits (first and last in 8), price what 2 bits would cost each op by every method, plan mixes for budgets
of compute, fine-tune every mix alike, and measure it on the test images. Also: whether the costs of
single ops add up. Writes report.html and figures/ to the folder, and prints the tables. What is done is
kept: after an interrupt, or in a second call, only what is missing is made.

After section 4 of arXiv 2301.13330; needs scikit-learn, whose digits need no download.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from outcome import Mix, Outcome, SeedOutcome, Sum, from_json, to_json
from pages import report
from pricing import DRAWN, METHODS, Prices, prices
from rich.console import Console
from tabulated import tables
from training import LOWER, Mixes, Training, base, full_precision

from inc_mp_plugin.core.errors import PluginError
from inc_mp_plugin.qat.layers import SCALED, STATISTICS
from inc_mp_plugin.report.terminal import print_table
from inc_mp_plugin.report.write import write_pages
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.progress import shown, tell, tracked
from inc_mp_plugin.runtime.reuse import run_stage
from inc_mp_plugin.solver.planner import IP_MSE


@dataclass(frozen=True, slots=True)
class Effort:
    """How much is done: the experiment, or a reduced one.

    `brief` is the fine-tuning of ALPS and of the sums, `mix` that of every plan; `draws` counts plans per
    budget of methods that chance has a part in, `sums` random mixes per seed.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    full_precision: Training = Training(60, 0.1)
    base: Training = Training(40, 0.05)
    brief: Training = Training(4, 0.02)
    mix: Training = Training(10, 0.03)
    budgets: tuple[float, ...] = (0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95)
    draws: int = 3
    sums: int = 16


REDUCED = Effort(
    seeds=(0,),
    full_precision=Training(30, 0.1),
    base=Training(20, 0.05),
    brief=Training(2, 0.02),
    mix=Training(5, 0.03),
    budgets=(0.60, 0.80, 0.95),
    draws=1,
    sums=8,
)


def run(folder: Path, effort: Effort) -> Outcome:
    """Do what is not done yet, seed by seed."""
    seeds = []
    for seed in effort.seeds:
        own = folder / f"seed-{seed}"

        def make(seed: int = seed, own: Path = own) -> tuple[SeedOutcome, store.Json]:
            found = run_seed(own, effort, seed)
            return found, to_json(found)

        depends_on = {**_as_json(effort), "seed": seed}
        seeds.append(
            run_stage(own / "outcome.json", "digits_outcome", depends_on, decode=from_json, make=make)
        )
        for partial in own.glob("*.partial.npz"):
            partial.unlink()
    return Outcome(tuple(seeds), effort.budgets)


def _as_json(effort: Effort) -> store.Json:
    """Effort as JSON gives it back, without the seeds: each has an outcome of its own."""
    content = {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(effort).items()}
    return {key: value for key, value in content.items() if key != "seeds"}


def run_seed(folder: Path, effort: Effort, seed: int) -> SeedOutcome:
    """One seed, from training to the last mix."""
    model, full = full_precision(folder, effort.full_precision, seed)
    start, whole = base(folder, effort.base, seed, model)
    brief = Mixes(folder / "brief.partial.npz", start, effort.brief, seed)
    priced = prices(folder, model, start, brief)
    mixes = Mixes(folder / "mixes.partial.npz", start, effort.mix, seed)
    scaled = Mixes(folder / "scaled.partial.npz", start, effort.mix, seed, SCALED)
    planned = [
        (method, draw, budget)
        for budget in effort.budgets
        for method in METHODS
        for draw in range(effort.draws if method in DRAWN else 1)
    ]
    with tracked(planned, f"seed {seed}: mixes", noun="mix") as mixed:
        made = [_mix(mixes, priced, *one) for one in mixed]
    return SeedOutcome(
        seed,
        priced.ops,
        full,
        whole,
        tuple(made),
        _sums(brief, priced, effort.sums, seed),
        {STATISTICS: mixes.trial(priced.ops), SCALED: scaled.trial(priced.ops)},
        {
            IP_MSE: priced.losses.costs(LOWER),
            **{method: dict(one.values[LOWER]) for method, one in priced.values.items()},
        },
        priced.seconds,
        len(mixes.trials),
    )


def _mix(mixes: Mixes, priced: Prices, method: str, draw: int, budget: float) -> Mix:
    plan = priced.plan(method, budget, draw)
    cost = (priced.cost - plan.gain) / priced.cost
    return Mix(method, draw, budget, cost, plan.quantized, mixes.trial(plan.quantized))


def _sums(brief: Mixes, priced: Prices, number: int, seed: int) -> tuple[Sum, ...]:
    """Random mixes of 2 ops to all but one, each size as likely: what they lose, and what their ops do."""
    draw, none = random.Random(seed), brief.trial(())
    alone = {op: brief.trial((op,)) for op in priced.ops}
    found = []
    with tracked(range(number), f"seed {seed}: sums") as numbers:
        for _ in numbers:
            chosen = draw.sample(priced.ops, draw.randint(2, len(priced.ops) - 1))
            together = brief.trial(chosen)
            found.append(
                Sum(
                    tuple(sorted(chosen)),
                    sum(alone[op].training_loss - none.training_loss for op in chosen),
                    together.training_loss - none.training_loss,
                    sum(none.training_accuracy - alone[op].training_accuracy for op in chosen),
                    none.training_accuracy - together.training_accuracy,
                )
            )
    return tuple(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment; return the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/digits"), help="folder for what is found")
    parser.add_argument(
        "--reduced", action="store_true", help="one seed and little training: a minute or two"
    )
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # on tensors this small a second thread gains nothing, and results vary
    try:
        with shown():
            outcome = run(given.out, REDUCED if given.reduced else Effort())
        path = write_pages(given.out, report(outcome))
    except PluginError as error:
        tell(f"error: {error}")
        return error.exit_code
    console = Console(highlight=False)
    for table in tables(outcome):
        print_table(table, console)
    console.print(f"report: {path}", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
