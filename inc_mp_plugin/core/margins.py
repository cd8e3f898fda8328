"""Margins: how near an op is to another format, and what would bring it there."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from inc_mp_plugin.core.literals import Yardstick


class Corner(NamedTuple):
    """A corner of the exact frontier: what its plan costs, loss MSE or nats per token, and what it gains."""

    cost: float
    gain: float


@dataclass(frozen=True, slots=True)
class Margin:
    """Gain and cost of an op, and of all that goes with it, in a lower format beside the rest of a plan.

    `gain` is in the unit of the gains, `cost` is loss MSE or nats per token. `entry` is the first corner of
    the frontier whose plan lowers the op, None if no corner does. An op without a choice has no margin.
    """

    gain: float
    cost: float
    entry: Corner | None

    @property
    def rate(self) -> float:
        """Gain per unit of cost; infinite where a gain costs nothing."""
        if self.cost > 0:
            return self.gain / self.cost
        return math.copysign(math.inf, self.gain) if self.gain else 0.0


@dataclass(frozen=True)
class Margins:
    """The margins of a plan's ops, by `yardstick`.

    `price` is the dual price: the gain that one more unit of cost would bring, 0 where no threshold binds.
    An op is worth lowering, to first order, if its rate is above.
    """

    price: float
    yardstick: Yardstick
    of: Mapping[str, Margin]

    def ratio(self, op: str) -> float:
        """Return the rate of an op over the dual price: 1 is the edge; NaN where nothing binds.

        Example:
            >>> Margins(2.0, "kl", {"q": Margin(6.0, 1.5, None)}).ratio("q")
            2.0
        """
        return self.of[op].rate / self.price if self.price > 0 else math.nan
