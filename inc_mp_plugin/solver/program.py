"""The configurations that a program chooses from, priced, and the plan that a choice makes."""

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
from inc_mp_plugin.solver.milp import total
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, loss_interval, sample_losses_mse


class Option(NamedTuple):
    """One configuration of a group: what it gains, and the loss MSE it is predicted to cost."""

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

    def formats(self, picks: Sequence[int]) -> dict[str, str]:
        """Formats of all ops for one pick per group."""
        return {
            op: format_name
            for group, options, pick in zip(self.gains.groups, self.groups, picks, strict=True)
            for op, format_name in zip(group.ops, options[pick].configuration, strict=True)
        }


def program(gains: Gains, losses: LossModel) -> Program:
    """Price every configuration: d_j(p) = sum over the group's ops of d(op, format) (eq. 22 to 25).

    Configurations that lower an op without a sensitivity (calibration never ran it) are left out, and so are
    those in FP8 of an op that INC on a CPU has no scale for (a weight or an input of zeros).

    Raises:
        InputError: the loss of every sample is 0, a format's rounding error was not measured, or an op that
            must leave the base format cannot.
    """
    if losses.loss_ms == 0:
        message = "the loss of every sample is 0, so a normalized RMSE has no meaning"
        raise InputError(message)
    lower = {format_name for group in gains.groups for one in group.configurations for format_name in one}
    held_back = without_scale(losses.sensitivity, gains.base, lower)
    loss_mse = {format_name: losses.loss_mse(format_name) for format_name in lower - {gains.base}}
    for format_name in loss_mse:
        if get_format(format_name).is_fp8:
            loss_mse[format_name] = {op: d for op, d in loss_mse[format_name].items() if op not in held_back}
    groups = tuple(options(group, gains.base, loss_mse) for group in gains.groups)
    empty = [group.ops for group, one in zip(gains.groups, groups, strict=True) if not one]
    if empty:
        why = next((held_back[op] for op in empty[0] if op in held_back), "calibration never ran it")
        message = f"op {empty[0][0]!r} must leave the base format, but {why}; more samples may help"
        raise InputError(message)
    return Program(gains, losses, groups)


def options(group: GroupGains, base: str, loss_mse: Mapping[str, Mapping[str, float]]) -> tuple[Option, ...]:
    """The configurations of a group whose loss MSE is known, with it; `loss_mse` is {format: {op: d}}."""
    found = []
    for configuration, gain in zip(group.configurations, group.gain, strict=True):
        lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != base]
        if all(op in loss_mse[format_name] for op, format_name in lowered):
            cost = math.fsum(loss_mse[format_name][op] for op, format_name in lowered)
            found.append(Option(configuration, gain, cost))
    return tuple(found)


def least_tau(nrmse: float) -> str:
    """A threshold that this NRMSE is within, whatever rounding errors do."""
    return rounded_up(nrmse * (1 + 1e-9), 6)


def infeasible(
    one: Program, demands: Demands, loss_budget: float, nrmse: float, limit: str
) -> InfeasibleError:
    """The error of a threshold that is exceeded by what the consumers fix.

    Args:
        one: the program.
        demands: that its gains keep to.
        loss_budget: the loss MSE that the threshold allows.
        nrmse: the least that can be met.
        limit: what the threshold does, in words.
    """
    cache, base = float(one.losses.cache_loss_mse.mean()), one.gains.base
    whole = one.losses.without_drift(loss_budget) + cache
    fixed = [
        op
        for group, options in zip(one.gains.groups, one.groups, strict=True)
        for place, op in enumerate(group.ops)
        if all(option.configuration[place] != base for option in options)
    ]
    takes = [f"the KV cache in FP8 takes {100.0 * cache / whole:.3g} %"] if cache else []
    if fixed:
        least = math.fsum(min(option.loss_mse for option in group) for group in one.groups)
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
    """Who made a plan, for which threshold, and what the solver said."""

    strategy: str
    tau: float | None
    status: str
    gap: float | None
    seconds: float
    correction: float = 1.0
    confidence: float = DEFAULT_CONFIDENCE


def make_plan(
    one: Program, formats: Mapping[str, str], gain: float, first_order: float, origin: Origin
) -> Plan:
    """A plan of these formats, whose ops' d add up to `first_order`: without a tau its loss budget."""
    loss_ms, loss_mse = one.losses.loss_ms, one.losses.with_drift(first_order)
    nrmse = math.sqrt(loss_mse / loss_ms)
    samples = sample_losses_mse(one.losses, formats, one.gains.base)
    return Plan(
        strategy=origin.strategy,
        objective=one.gains.objective,
        unit=one.gains.unit,
        source=one.gains.source,
        base=one.gains.base,
        noise=one.losses.noise,
        tau=nrmse if origin.tau is None else origin.tau,
        correction=origin.correction,
        loss_budget=loss_mse if origin.tau is None else origin.correction * origin.tau**2 * loss_ms,
        loss_mse=loss_mse,
        nrmse=nrmse,
        interval=loss_interval(samples, origin.confidence, one.losses.drift),
        confidence=origin.confidence,
        gain=gain,
        largest_gain=one.largest,
        binds=gain < one.largest,
        status=origin.status,
        gap=origin.gap,
        seconds=origin.seconds,
        formats=formats,
    )
