"""The program: the priced configurations that it chooses from, and the plan that a choice makes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.formats import get_format
from inc_mp_plugin.core.gains import Gains, GroupGains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.numbers import rounded_up
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.scales.scaleless import without_scale
from inc_mp_plugin.solver.milp import Candidate, total
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, loss_interval, sample_losses_mse


class Option(NamedTuple):
    """One configuration of a group: its gain, and its predicted loss MSE without drift and KV cache."""

    configuration: tuple[str, ...]
    gain: float
    loss_mse: float


@dataclass(frozen=True)
class Program:
    """The options of every group for one objective."""

    gains: Gains
    losses: LossModel
    groups: tuple[tuple[Option, ...], ...]

    @cached_property
    def most(self) -> Fraction:
        """The largest gain of any choice, exactly."""
        return total(max(option.gain for option in group) for group in self.groups)

    @property
    def largest(self) -> float:
        """The largest gain of any choice."""
        return float(self.most)

    @cached_property
    def candidates(self) -> list[list[Candidate]]:
        """The options as a knapsack takes them: the gain is their value, the loss MSE their cost."""
        return [[Candidate(option.gain, option.loss_mse) for option in group] for group in self.groups]

    @cached_property
    def least_losses(self) -> list[float]:
        """The least loss MSE among the options of each group."""
        return [min(option.loss_mse for option in group) for group in self.groups]

    def formats(self, picks: Sequence[int]) -> dict[str, str]:
        """Return the formats of all ops for one pick per group."""
        return {
            op: format_name
            for group, options, pick in zip(self.gains.groups, self.groups, picks, strict=True)
            for op, format_name in zip(group.ops, options[pick].configuration, strict=True)
        }

    def totals(self, picks: Sequence[int]) -> tuple[float, float]:
        """Add up the gain and the loss MSE (without drift and KV cache) of one pick per group."""
        options = [group[pick] for group, pick in zip(self.groups, picks, strict=True)]
        return math.fsum(option.gain for option in options), math.fsum(option.loss_mse for option in options)

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

    def nrmse(self, loss_mse: float) -> float:
        """Predict the normalized RMSE of options whose loss MSE add up to this, with drift and KV cache."""
        return math.sqrt(self.losses.with_drift(loss_mse) / self.losses.loss_ms)


def make_program(gains: Gains, losses: LossModel) -> Program:
    """Price every configuration: d_j(p) = sum over the group's ops of d(op, format) (eq. 22 to 25).

    Two kinds of configurations are left out: those that lower an op without a sensitivity (calibration
    never ran the op), and those in FP8 of an op for which INC on a CPU has no scale (a weight or an input
    of zeros).

    Raises:
        InputError: the loss of every sample is 0, a format's rounding error was not measured, or an op that
            must leave the base format cannot.
    """
    if losses.loss_ms == 0:
        message = "the loss of every sample is 0, so a normalized RMSE has no meaning"
        raise InputError(message)
    loss_mse = price_formats(gains, losses)
    held_back = without_scale(losses.sensitivity, gains.base, loss_mse)
    for format_name in loss_mse:
        if get_format(format_name).is_fp8:
            loss_mse[format_name] = {op: d for op, d in loss_mse[format_name].items() if op not in held_back}
    groups = tuple(price_options(group, gains.base, loss_mse) for group in gains.groups)
    empty = [group.ops for group, options in zip(gains.groups, groups, strict=True) if not options]
    if empty:
        why = next((held_back[op] for op in empty[0] if op in held_back), "calibration never ran it")
        message = f"op {empty[0][0]!r} must leave the base format, but {why}; more samples may help"
        raise InputError(message)
    return Program(gains, losses, groups)


def price_formats(gains: Gains, losses: LossModel) -> dict[str, dict[str, float]]:
    """Price the ops in every lower format of the configurations, {format: {op: d}}.

    Raises:
        InputError: a format's rounding error was not measured.
    """
    formats = {
        name for group in gains.groups for configuration in group.configurations for name in configuration
    }
    return {format_name: losses.loss_mse(format_name) for format_name in formats - {gains.base}}


def price_options(
    group: GroupGains, base: str, loss_mse: Mapping[str, Mapping[str, float]]
) -> tuple[Option, ...]:
    """Price the configurations of a group, without those that lower an op of no known loss MSE.

    Args:
        group: of ops, with the gains of its configurations.
        base: the base format.
        loss_mse: d of each op that has one, {format: {op: d}}.
    """
    options = []
    for configuration, gain in zip(group.configurations, group.gain, strict=True):
        lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != base]
        if all(op in loss_mse[format_name] for op, format_name in lowered):
            cost = math.fsum(loss_mse[format_name][op] for op, format_name in lowered)
            options.append(Option(configuration, gain, cost))
    return tuple(options)


def least_tau(nrmse: float) -> str:
    """Round an NRMSE up to a threshold that holds it, whatever rounding errors do."""
    return rounded_up(nrmse * (1 + 1e-9), 6)


def infeasible(
    program: Program, demands: Demands, *, loss_budget: float, nrmse: float, limit: str
) -> InfeasibleError:
    """Make the error of a threshold that is exceeded by the ops and the cache that must be lowered.

    Args:
        program: of gains that keep to the demands.
        demands: of the consumers.
        loss_budget: the loss MSE that the threshold allows.
        nrmse: the least that can be met.
        limit: the threshold in words, such as "tau 0.1 allows".
    """
    cache, base = float(program.losses.cache_loss_mse.mean()), program.gains.base
    whole = program.losses.without_drift(loss_budget) + cache
    fixed = [
        op
        for group, options in zip(program.gains.groups, program.groups, strict=True)
        for place, op in enumerate(group.ops)
        if all(option.configuration[place] != base for option in options)
    ]
    takes = [f"the KV cache in FP8 takes {100.0 * cache / whole:.3g} %"] if cache else []
    if fixed:
        least = math.fsum(program.least_losses)
        reasons = "; ".join(sorted({demands.lowered[op] for op in fixed if op in demands.lowered}))
        takes.append(f"{len(fixed)} ops take {100.0 * least / whole:.3g} %{reasons and f' ({reasons})'}")
    remedy = "a larger tau, or kv_cache=bf16" if demands.serving.kv_cache == "fp8" else "a larger tau"
    message = (
        f"what must run in a lower format moves the loss by more than {limit}: of the loss budget, "
        f"{' and '.join(takes)}; give {remedy}: the least tau that can be met is {least_tau(nrmse)}"
    )
    return InfeasibleError(message)


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of a plan: the strategy, its threshold, and the end of the solve (see `Plan`).

    Without a tau the plan's own loss MSE is its loss budget.
    """

    strategy: str
    tau: float | None
    status: str
    gap: float | None = None
    seconds: float = 0.0
    correction: float = 1.0
    confidence: float = DEFAULT_CONFIDENCE


def make_plan(
    program: Program, formats: Mapping[str, str], origin: Origin, *, gain: float, loss_mse: float
) -> Plan:
    """Make a plan of these formats.

    Args:
        program: that the formats were chosen by.
        formats: of all ops.
        origin: of the choice.
        gain: of these formats, in the unit of the program's gains.
        loss_mse: sum of the ops' d, without drift and KV cache.
    """
    losses, nrmse = program.losses, program.nrmse(loss_mse)
    whole = losses.with_drift(loss_mse)
    samples = sample_losses_mse(losses, formats, program.gains.base)
    return Plan(
        strategy=origin.strategy,
        objective=program.gains.objective,
        unit=program.gains.unit,
        source=program.gains.source,
        base=program.gains.base,
        noise=losses.noise,
        tau=nrmse if origin.tau is None else origin.tau,
        correction=origin.correction,
        loss_budget=whole if origin.tau is None else origin.correction * origin.tau**2 * losses.loss_ms,
        loss_mse=whole,
        nrmse=nrmse,
        interval=loss_interval(samples, origin.confidence, losses.drift),
        confidence=origin.confidence,
        gain=gain,
        largest_gain=program.largest,
        binds=gain < program.largest,
        status=origin.status,
        gap=origin.gap,
        seconds=origin.seconds,
        formats=formats,
    )
