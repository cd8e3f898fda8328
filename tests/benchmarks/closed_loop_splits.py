"""The closed loop on 100 splits of the shipped held-out samples: its plans on samples that it never read.

    inc-mp tune recipes/tiny-llama-proof.yaml verify=false validation.samples=512 --out runs/splits
    python tests/benchmarks/closed_loop_splits.py runs/splits

Plans for thresholds on a grid are measured once, together, on all 512 samples; these losses are kept in
the folder. In each split the loop reads some samples drawn at random and chooses by the real program,
whose thresholds are rounded down to the grid; its plan is then looked at on all samples left. "above": the
share of splits whose plan is above tau there, which has noise of its own: the NRMSE of 384 samples is 4 %
off by chance. "largest": the rule that takes the plan of largest gain whose measured NRMSE is within tau.
"best": the gain of the largest plan within tau on all samples, which no rule can know.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path

import numpy as np

from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.verdicts import Thresholds
from inc_mp_plugin.evaluate.closed_loop import close_loop
from inc_mp_plugin.evaluate.interval import measured_values
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.solver.planner import solve

STEP = 1.2**0.2
PLACES = range(-24, 20, 2)  # powers of the step: the grid, around the recipe's tau
SPLITS = 100
TAUS = (0.0014, 0.0017, 0.002, 0.0024, 0.0028)


class Pool:
    """Plans of a grid of thresholds, with the losses of every held-out sample."""

    def __init__(self, run: Run) -> None:
        """Solve for and measure all of them, if that has not been done yet."""
        self._run, self._tau = run, float(run.recipe.tau or 0.0)
        self.plans = [self.plan(place) for place in PLACES]
        run.meter.measure([plan.quantized for plan in self.plans], "Plans", "fewer of PLACES take less")
        self.base = run.meter.losses(())
        self.losses = {plan.quantized: run.meter.losses(plan.quantized) for plan in self.plans}

    @cache  # noqa: B019
    def plan(self, place: int) -> Plan:
        """The plan at a place of the grid."""
        return solve(self._run.gains["memory"], self._run.losses, self._tau * STEP**place)

    def at(self, nrmse: float) -> Plan:
        """The plan of the largest threshold of the grid within this one."""
        if nrmse < self._tau * STEP ** PLACES[0] * (1 - 1e-9):
            return solve(self._run.gains["memory"], self._run.losses, 1e-9)
        power = math.log(nrmse / self._tau) / math.log(STEP)
        return self.plan(max(place for place in PLACES if place <= power + 1e-6))

    def nrmse(self, plan: Plan, rows: np.ndarray) -> float:
        """Measured NRMSE of a plan on some samples."""
        base = self.base[rows]
        changes = self.losses[plan.quantized][rows] - base if plan.quantized else 0.0 * base
        return float(np.sqrt((changes**2).mean() / (base**2).mean()))

    def closed_loop(self, tau: float, rows: np.ndarray, level: float) -> tuple[Plan, int]:
        """The plan that the closed loop chooses on some samples, and how many plans it measured."""
        found = close_loop(
            lambda correction: self.at(tau * correction**0.5),
            lambda plan: measured_values(self.losses[plan.quantized][rows], self.base[rows], level),
            Thresholds(tau),
            samples=len(rows),
            level=level,
        )
        return self.at(tau * found.correction**0.5), sum(one.ops > 0 for one in found.rounds)

    def largest(self, tau: float, rows: np.ndarray) -> Plan:
        """The plan of largest gain that seems to be within tau on some samples."""
        return max(
            (plan for plan in self.plans if self.nrmse(plan, rows) <= tau),
            key=lambda plan: plan.gain,
            default=self.at(0.0),
        )


def compare(pool: Pool, tau: float, read: int, level: float = 0.95) -> str:
    """One line: both rules on all splits."""
    rows, ratios, gains, measured = np.arange(len(pool.base)), ([], []), ([], []), []
    for seed in range(SPLITS):
        drawn = np.random.default_rng(seed).permutation(rows)
        plan, count = pool.closed_loop(tau, drawn[:read], level)
        measured.append(count)
        for number, one in enumerate((plan, pool.largest(tau, drawn[:read]))):
            ratios[number].append(pool.nrmse(one, drawn[read:]) / tau)
            gains[number].append(100.0 * one.gain / one.largest_gain)
    best = pool.largest(tau, rows)
    line = f"{tau:.4f}  {read:4d}  "
    for ratio, gain in zip(ratios, gains, strict=True):
        above, high = 100.0 * np.mean(np.array(ratio) > 1.0), np.quantile(ratio, 0.9)
        line += f"{above:5.0f} %  {np.mean(ratio):.2f}  {high:.2f}  {np.mean(gain):5.1f} %  | "
    return f"{line}{100.0 * best.gain / best.largest_gain:5.1f} %  {np.mean(measured):4.1f} ({max(measured)})"


def main() -> None:
    """Print both rules for several thresholds and numbers of samples."""
    pool = Pool(Run(Path(sys.argv[1])))
    print("             closed loop: NRMSE/tau           | largest: NRMSE/tau               | best    plans")
    print("tau     read  above  mean  90 %   gain    |  above  mean  90 %   gain   |   gain    measured")
    for read in (32, 64, 128):
        for tau in TAUS:
            print(compare(pool, tau, read), flush=True)


if __name__ == "__main__":
    main()
