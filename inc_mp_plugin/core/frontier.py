"""Gain against predicted cost: the curve of each strategy, and the plans of the exact one."""

from __future__ import annotations

from dataclasses import dataclass

from inc_mp_plugin.core.literals import Objective, Source, Unit, Yardstick
from inc_mp_plugin.core.plans_along import PlansAlong


@dataclass(frozen=True, slots=True)
class Curve:
    """Gain against predicted loss MSE of one strategy, by rising gain.

    Point k lowers `ops[k]` ops; `low` and `high` are the ends of its loss MSE's confidence interval.
    `seed` tells random draws apart. `needed` is the loss MSE that a threshold must allow for point k to be a
    plan, which is more where a program counts more than the prediction does (`KLModel`); the exact curve
    alone has it.
    """

    strategy: str
    seed: int
    ops: tuple[int, ...]
    gain: tuple[float, ...]
    loss_mse: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    needed: tuple[float, ...] = ()

    @property
    def last(self) -> Curve:
        """The last point alone."""
        end = slice(-1, None)
        costs = self.loss_mse[end], self.low[end], self.high[end], self.needed[end]
        return Curve(self.strategy, self.seed, self.ops[end], self.gain[end], *costs)

    def least_loss(self, gain: float) -> float | None:
        """Find the least loss MSE of the points that gain at least this much; None if none does.

        Example:
            >>> curve = Curve("prefix", 0, (0, 1), (0.0, 2.0), (0.0, 0.5), (0.0, 0.4), (0.0, 0.6))
            >>> curve.least_loss(1.0), curve.least_loss(3.0)
            (0.5, None)
        """
        reached = [loss for g, loss in zip(self.gain, self.loss_mse, strict=True) if g >= gain]
        return min(reached, default=None)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Curves of every strategy for one objective; `knee` is a point of the first, the exact one.

    The curves' `loss_mse` is a KL divergence where that is the `yardstick`. `plans` are those of the exact
    curve, and `beside` is what they cost by the other yardstick, if that was measured.
    """

    objective: Objective
    unit: Unit
    source: Source
    loss_ms: float
    largest_gain: float
    curves: tuple[Curve, ...]
    knee: int
    yardstick: Yardstick = "loss"
    plans: PlansAlong | None = None
    beside: tuple[float, ...] = ()

    def threshold(self, cost: float) -> float:
        """Return a cost as thresholds count it: the normalized RMSE of a loss MSE, or nats per token."""
        return cost if self.yardstick == "kl" else float((cost / self.loss_ms) ** 0.5)
