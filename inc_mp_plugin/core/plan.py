"""A plan: one format per op, with its predicted loss and gain; and the values by which ops are ranked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, get_args

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.literals import NoiseModel, Objective, Source, Unit, ValueMethod, Yardstick

VALUE_METHODS: tuple[ValueMethod, ...] = get_args(ValueMethod)
EAGL, ALPS = VALUE_METHODS


@dataclass(frozen=True, slots=True)
class OpValues:
    """Value of keeping each op in the base format rather than in a lower one, {format: {op: value}}.

    The values of the ops that are kept add up (section 3.1 of arXiv 2301.13330), so a plan's is the sum
    over them, and the plan of the largest value within a budget is that of the least sum over the ops
    that are lowered. `unit` says what is counted: "bit" of entropy, "loss" or "accuracy".
    """

    method: str
    unit: str
    values: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class TieCost:
    """Cost of a tie: the gain that would come on top if its ops could choose on their own.

    To first order: at the price, in gain per loss MSE, that the loss budget has in the relaxed program.
    """

    ops: tuple[str, ...]
    why: str
    cost: float


class Interval(NamedTuple):
    """The ends of a confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Plan:
    """One format per op, what that is predicted to cost and to gain, and how it was found.

    `unit` and `source` are those of the gains; `noise` is the model that priced losses. `constraint` is the
    yardstick that a gain was sought under, or the least of which a given gain was sought at.

    `loss_budget` is correction tau^2 E[g^2] (eq. 5), with a `correction` of 1 unless a confidence or a
    measurement asked for another; `nrmse` is sqrt(loss_mse / E[g^2]), predicted. `interval` holds, with
    probability `confidence`, the loss MSE of as many fresh samples. All of these are None where the loss was
    not priced. `kl` is the threshold of the KL divergence in nats per token, None without one;
    `predicted_kl` and `kl_interval` are None where it was not priced, and the interval with too few rows.

    `binds` tells whether the thresholds kept any gain from being taken; when it is False the plan already has
    the largest gain there is. `gap` is None where nothing was optimised. `targets`, `serving` and `ties` are
    what the plan was held to.
    """

    strategy: str
    objective: Objective
    unit: Unit
    source: Source
    base: str
    noise: NoiseModel
    tau: float | None
    correction: float
    loss_budget: float | None
    loss_mse: float | None
    nrmse: float | None
    interval: Interval | None
    confidence: float
    gain: float
    largest_gain: float
    binds: bool
    status: str
    gap: float | None
    seconds: float
    formats: Mapping[str, str]
    targets: tuple[str, ...] = ()
    serving: Serving = Serving()
    ties: tuple[TieCost, ...] = ()
    constraint: Yardstick = "loss"
    kl: float | None = None
    predicted_kl: float | None = None
    kl_interval: Interval | None = None

    @property
    def quantized(self) -> tuple[str, ...]:
        """Names of the ops that leave the base format, sorted."""
        return tuple(sorted(op for op, format_name in self.formats.items() if format_name != self.base))

    @property
    def lowered(self) -> dict[str, str]:
        """Formats of the ops that leave the base format."""
        return {op: self.formats[op] for op in self.quantized}
