"""The program: the priced configurations that it chooses from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from operator import itemgetter
from typing import NamedTuple

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.formats import get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.scales.scaleless import without_scale
from inc_mp_plugin.solver.milp import Candidate, total


class Price(NamedTuple):
    """Cost of an op in a format: loss MSE d, shift of the mean loss, KL divergence in nats per token."""

    loss_mse: float
    shift: float
    kl: float


class Option(NamedTuple):
    """One configuration of a group: its gain, and what it costs without the KV cache.

    `loss_mse` is its sum of d, `shift` that of the mean loss, `kl` its KL divergence in nats per token; each
    is 0 where it was not measured.
    """

    configuration: tuple[str, ...]
    gain: float
    loss_mse: float = 0.0
    shift: float = 0.0
    kl: float = 0.0


class Totals(NamedTuple):
    """Sums over the options of a choice, without the KV cache."""

    gain: float
    loss_mse: float = 0.0
    shift: float = 0.0
    kl: float = 0.0


@dataclass(frozen=True)
class Program:
    """The options of every group for one objective, and the prices of ops, {format: {op: price}}."""

    gains: Gains
    costs: Costs
    groups: tuple[tuple[Option, ...], ...]
    prices: Mapping[str, Mapping[str, Price]]

    @cached_property
    def most(self) -> Fraction:
        """The largest gain of any choice, exactly."""
        return total(max(option.gain for option in group) for group in self.groups)

    @property
    def largest(self) -> float:
        """The largest gain of any choice."""
        return float(self.most)

    def candidates(self, cost: Callable[[Option], float]) -> list[list[Candidate]]:
        """Return the options as a knapsack takes them: the gain is their value."""
        return [[Candidate(option.gain, cost(option)) for option in group] for group in self.groups]

    def least(self, cost: Callable[[Option], float]) -> list[float]:
        """Return the least cost among the options of each group."""
        return [min(map(cost, group)) for group in self.groups]

    @property
    def least_totals(self) -> Totals:
        """The least of every sum; no choice has less of any."""
        sums = (math.fsum(self.least(itemgetter(place))) for place in (2, 3, 4))
        return Totals(0.0, *sums)

    def formats(self, picks: Sequence[int]) -> dict[str, str]:
        """Return the formats of all ops for one pick per group."""
        return {
            op: format_name
            for group, options, pick in zip(self.gains.groups, self.groups, picks, strict=True)
            for op, format_name in zip(group.ops, options[pick].configuration, strict=True)
        }

    def totals(self, picks: Sequence[int]) -> Totals:
        """Add up one pick per group."""
        options = [group[pick] for group, pick in zip(self.groups, picks, strict=True)]
        return Totals(
            *(math.fsum(column) for column in zip(*(option[1:] for option in options), strict=True))
        )

    def loss_mse(self, totals: Totals) -> float | None:
        """Predict the loss MSE of a choice, with its shift and the KV cache; None if it was not measured."""
        loss = self.costs.loss
        return None if loss is None else loss.with_shift(totals.loss_mse, totals.shift)

    def kl(self, totals: Totals) -> float | None:
        """Predict the KL divergence of a choice, with the KV cache; None if it was not measured."""
        kl = self.costs.kl
        return None if kl is None else totals.kl + kl.cache_cost

    def predicted(self, totals: Totals, yardstick: Yardstick) -> float:
        """Predict the loss MSE or the KL divergence of a choice.

        Raises:
            InputError: it was not measured.
        """
        self.costs.by(yardstick)
        value = self.loss_mse(totals) if yardstick == "loss" else self.kl(totals)
        return 0.0 if value is None else value

    def required_gain(self, gain_fraction: float | None, budget: float | None) -> Fraction | None:
        """Compute the gain that a plan must have, in the unit of the gains; None if neither is given.

        The result is exact, from the decimals of the fraction: a budget of 0.7 leaves 3/10 of the cost to
        gain. Floats would make 0.30000000000000004 of 3/10, which no number of bytes might reach. Where
        gains are not exact, the result is less by the tolerance of the gains.

        Args:
            gain_fraction: fraction of the largest gain.
            budget: fraction of the cost of everything in the base format that a plan may cost.

        Raises:
            InputError: a budget is given, and the cost of everything in the base format is not known.
            InfeasibleError: no plan costs as little.
        """
        gains = self.gains
        if gain_fraction is not None:
            return max(Fraction(str(gain_fraction)) * self.most - gains.tolerance, Fraction(0))
        if budget is None:
            return None
        if not gains.cost:
            message = (
                f"the gains of {gains.objective} do not say what everything costs in {gains.base}, so a cost "
                "budget means nothing; give gain_fraction, or run `inc-mp tune` again"
            )
            raise InputError(message)
        gain = max((1 - Fraction(str(budget))) * Fraction(gains.cost) - gains.tolerance, Fraction(0))
        if gain > self.most:
            least = rounded_up(1 - self.most / Fraction(gains.cost), 6)
            message = (
                f"no plan costs at most {budget:.6g} of the {gains.objective} of everything in {gains.base}; "
                f"the least budget that can be met is {least}"
            )
            raise InfeasibleError(message)
        return gain


def make_program(gains: Gains, costs: Costs) -> Program:
    """Price every configuration: d_j(p) = sum over the group's ops of d(op, format) (eq. 22 to 25).

    Two kinds of configurations are left out: those that lower an op without a sensitivity (calibration
    never ran the op), and those in FP8 of an op for which INC on a CPU has no scale (a weight or an input
    of zeros).

    Raises:
        InputError: the loss of every sample is 0, a format's rounding error was not measured, or an op that
            must leave the base format cannot.
    """
    if costs.loss is not None and costs.loss.loss_ms == 0:
        message = "the loss of every sample is 0, so a normalized RMSE has no meaning"
        raise InputError(message)
    prices = price_formats(gains, costs)
    held_back = without_scale(costs.sensitivity, gains.base, prices)
    for format_name in prices:
        if get_format(format_name).is_fp8:
            prices[format_name] = {op: d for op, d in prices[format_name].items() if op not in held_back}
    groups = tuple(price_options(group, gains.base, prices) for group in gains.groups)
    empty = [group.ops for group, options in zip(gains.groups, groups, strict=True) if not options]
    if empty:
        why = next((held_back[op] for op in empty[0] if op in held_back), "calibration never ran it")
        message = f"op {empty[0][0]!r} must leave the base format, but {why}; more samples may help"
        raise InputError(message)
    return Program(gains, costs, groups, prices)


def price_formats(gains: Gains, costs: Costs) -> dict[str, dict[str, Price]]:
    """Price the ops in every lower format of the configurations, {format: {op: price}}.

    Raises:
        InputError: a format's rounding error was not measured.
    """
    formats = {
        name for group in gains.groups for configuration in group.configurations for name in configuration
    }
    nothing = dict.fromkeys(costs.ops, 0.0)
    prices = {}
    for name in formats - {gains.base}:
        loss_mse = nothing if costs.loss is None else costs.loss.costs(name)
        shift = nothing if costs.loss is None else costs.loss.shifts(name)
        kl = nothing if costs.kl is None else costs.kl.costs(name)
        prices[name] = {op: Price(loss_mse[op], shift[op], kl.get(op, 0.0)) for op in costs.ops}
    return prices


def price_options(
    group: GroupGains, base: str, prices: Mapping[str, Mapping[str, Price]]
) -> tuple[Option, ...]:
    """Price the configurations of a group, without those that lower an op of no known price.

    Args:
        group: of ops, with the gains of its configurations.
        base: the base format.
        prices: of each op that has one, {format: {op: price}}.
    """
    options = []
    for configuration, gain in zip(group.configurations, group.gain, strict=True):
        lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != base]
        if all(op in prices[format_name] for op, format_name in lowered):
            columns = zip(*(prices[format_name][op] for op, format_name in lowered), strict=True)
            options.append(Option(configuration, gain, *map(math.fsum, columns)))
    return tuple(options)
