"""Plans that experiments compare: of every strategy at one threshold, at equal gain, and random ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.experiment import Trial
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.evaluate.validate import random_plans
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.solver.baselines import baseline, baseline_gaining
from inc_mp_plugin.solver.orders import (
    BASELINES,
    BY_LAYERS,
    ENDS,
    PRACTICE,
    PREFIX,
    RANDOM,
    UNIFORM,
    lower_format,
)
from inc_mp_plugin.solver.planner import solve


@dataclass(frozen=True)
class Plans:
    """Maker of the trials of a folder, for the gains of one objective.

    Attributes:
        run: the folder.
        gains: of one objective.
    """

    run: Run
    gains: Gains

    @property
    def has_layers(self) -> bool:
        """True if there are layers, of which baselines keep the first and the last."""
        return bool(repeated_blocks(self.run.graph))

    def at_the_thresholds(self, draws: int) -> list[Trial]:
        """Make the plans of all strategies at the thresholds of the folder's plan.

        Args:
            draws: number of random orders.
        """
        job, plan = self.run.job, self.run.plan
        tau, kl = job.tau or plan.tau, job.kl or plan.kl
        level = kl or tau
        if level is None:
            message = "strategies are compared at a threshold, and there is none; run `inc-mp tune` with kl"
            raise InputError(message)
        trials = [trial_of(solve(self.gains, self.run.losses, tau, kl=kl), 0, level)]
        for strategy in (*BASELINES, *(BY_LAYERS if self.has_layers else ())):
            for seed in range(draws if strategy == RANDOM else 1):
                make = partial(self._baseline, strategy, tau, kl, seed=seed)
                trials += _if_priced(make, seed, level)
        return trials

    def within_everything(self, levels: Sequence[float]) -> list[Trial]:
        """Make the plans of `ip_mse` within fractions of what everything in the lower format costs.

        The fractions are of its NRMSE, or of the root of its KL divergence where that is the yardstick.
        """
        everything = self.everything
        trials, by_kl = [], self.run.yardstick == "kl"
        for level in levels:
            tau = None if by_kl else level * (everything.nrmse or 0.0)
            kl = level**2 * (everything.predicted_kl or 0.0) if by_kl else None
            trials.append(trial_of(solve(self.gains, self.run.losses, tau, kl=kl), 0, level))
        return [*trials, trial_of(everything, 0, 1.0)]

    def random_sets(self, count: int) -> list[Trial]:
        """Draw so many sets of ops of any size; the level of each is its share of all ops.

        Of most of them a group's configuration is none of those that were priced: they have no gain.
        """
        ops, gains = self.run.losses.ops, self.run.free_gains[self.gains.objective]
        format_name, trials = lower_format(gains), []
        for seed, drawn in enumerate(random_plans(ops, count, seed=0)):
            gain = gains.total(dict.fromkeys(drawn, format_name))
            share = len(drawn) / len(ops)
            trials.append(Trial(RANDOM, seed, share, None if gain is None else gain[0], drawn))
        return trials

    def gaining(self, levels: Sequence[float], values: OpValues | None = None) -> list[Trial]:
        """Make the plans of least cost, or of least value, that gain at least so much.

        Args:
            levels: fractions of the largest gain.
            values: of EAGL or ALPS; None for `ip_mse`.
        """
        make = partial(solve, self.gains, self.run.losses, constraint=self.run.yardstick, values=values)
        each = (_if_priced(partial(make, gain_fraction=level), 0, level) for level in levels)
        return [trial for made in each for trial in made]

    def baselines_gaining(self, levels: Sequence[float], draws: Iterable[tuple[str, int]]) -> list[Trial]:
        """Make the first plans of baselines, each with a seed, that gain at least so much.

        Args:
            levels: fractions of the largest gain.
            draws: names and seeds of the baselines.
        """
        trials = []
        for level, (strategy, seed) in product(levels, draws):
            given = (self.gains, self.run.losses, strategy, level * self.gains.largest)
            make = partial(baseline_gaining, *given, seed=seed, graph=self.run.graph)
            trials += _if_priced(make, seed, level)
        return trials

    def baseline_draws(self, draws: int) -> Iterator[tuple[str, int]]:
        """Yield the baselines that can be compared at any gain, with so many draws of the random one."""
        yield PREFIX, 0
        if self.has_layers:
            yield ENDS, 0
        yield from ((RANDOM, seed) for seed in range(draws))

    @property
    def everything(self) -> Plan:
        """All ops in the lower format."""
        return self._baseline(UNIFORM, tau=1.0)  # all of them, whatever the threshold

    @property
    def practice(self) -> list[Trial]:
        """The trial of all linear ops but the head, at its own gain; none without a known gain above 0.

        Its level is the next number below its share of the largest gain, so that other plans of exactly this
        gain have enough, too.
        """
        if not self.has_layers:
            return []
        made = _if_priced(partial(self._baseline, PRACTICE, tau=1.0), 0, 1.0)
        shares = [(trial, (trial.gain or 0.0) / self.gains.largest) for trial in made]
        return [replace(trial, level=math.nextafter(share, 0.0)) for trial, share in shares if share > 0]

    def _baseline(
        self, strategy: str, tau: float | None = None, kl: float | None = None, seed: int = 0
    ) -> Plan:
        return baseline(self.gains, self.run.losses, strategy, tau, kl=kl, seed=seed, graph=self.run.graph)


def trial_of(plan: Plan, seed: int, level: float) -> Trial:
    """Make the trial of a plan.

    Args:
        plan: as it was made.
        seed: of the draw, 0 if there is none.
        level: that it was asked for.
    """
    cost = plan.loss_mse, plan.interval
    kl = plan.predicted_kl
    return Trial(plan.strategy, seed, level, plan.gain, plan.quantized, *cost, predicted_kl=kl)


def _if_priced(make: Callable[[], Plan], seed: int, level: float) -> list[Trial]:
    """Make a plan's trial; none where a strategy never gains as much, or its gain was not measured."""
    try:
        return [trial_of(make(), seed, level)]
    except (InputError, InfeasibleError) as error:
        say(f"left out: {error}")
        return []
