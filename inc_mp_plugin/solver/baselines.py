"""Plans without a program (section 3.1): ops lowered in some order, up to a threshold, or all of them."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.loss_model import LossModel, loss_model
from inc_mp_plugin.core.op_values import OpValues
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.results import Curve
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.program import Origin, Program, infeasible, make_plan, program
from inc_mp_plugin.solver.ties import demanded_program
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, loss_interval

RANDOM, PREFIX, UNIFORM = "random", "prefix", "uniform"
BASELINES = (RANDOM, PREFIX, UNIFORM)


def baseline(
    gains: Gains,
    sensitivity: Sensitivity | LossModel,
    strategy: str,
    tau: float,
    *,
    seed: int = 0,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Plan:
    """The plan of a baseline: ops are lowered one after the other while the loss budget allows.

    `random` takes them in an order drawn from `seed`, `prefix` in graph order; both stop before the
    first op that would lift the predicted loss MSE above tau^2 E[g^2]. `uniform` lowers all ops,
    whatever the threshold, and its own loss is then its loss budget. All take the first lower format.

    EAGL and ALPS, whose values are no losses, are held to a threshold in this way, too: ops are lowered in
    the order of value per gain, the least first, each one that the loss
    budget still allows.

    Args:
        gains: what each configuration of each group gains.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        strategy: one of BASELINES, or the method of the values.
        tau: threshold of the normalized RMSE of the loss, above 0.
        seed: of the order of `random`.
        demands: what the consumers of the plan can run, as in `solve`.
        values: of EAGL or ALPS.

    Raises:
        InputError: an unknown strategy, a tau out of range, or a configuration without a gain.
        InfeasibleError: what must leave the base format costs more than tau allows.
    """
    check_knobs(tau, None)
    if strategy not in BASELINES and (values is None or strategy != values.method):
        raise InputError(unknown("baseline", strategy, BASELINES))
    one = demanded_program(gains, sensitivity, demands)
    steps = order(one, strategy, seed, values)
    listed = [op for step in steps for op in step]
    if strategy != UNIFORM:
        losses = one.losses
        loss_mse = losses.loss_mse(lower_format(one.gains))
        loss_budget = losses.without_drift(tau**2 * losses.loss_ms)
        spent, listed = list[float](), list(steps[0])
        spent += (loss_mse[op] for op in listed)
        if math.fsum(spent) > loss_budget:
            nrmse = math.sqrt(losses.with_drift(math.fsum(spent)) / losses.loss_ms)
            raise infeasible(one, demands, tau**2 * losses.loss_ms, nrmse, f"tau {tau:.6g} allows")
        for step in steps[1:]:
            with_it = [*spent, *(loss_mse[op] for op in step)]
            if math.fsum(with_it) <= loss_budget:
                spent = with_it
                listed += step
            elif values is None:
                break
    plan = _lowering(one, strategy, seed, listed, None if strategy == UNIFORM else tau)
    return replace(plan, targets=demands.targets, serving=demands.serving)


def baseline_gaining(
    gains: Gains, sensitivity: Sensitivity | LossModel, strategy: str, gain: float, *, seed: int = 0
) -> Plan:
    """The first plan of a baseline, op after op, that gains this much; see `baseline`.

    Raises:
        InputError: none does.
    """
    one = program(gains, loss_model(sensitivity))
    curve = baseline_curve(one, strategy, seed)
    enough = [ops for ops, reached in zip(curve.ops, curve.gain, strict=True) if reached >= gain]
    if not enough:
        message = f"the {strategy} baseline never gains {gain:.6g}; its most is {max(curve.gain):.6g}"
        raise InputError(message)
    listed = [op for step in order(one, strategy, seed) for op in step]
    return _lowering(one, strategy, seed, listed[: enough[0]], None)


def _lowering(one: Program, strategy: str, seed: int, listed: Sequence[str], tau: float | None) -> Plan:
    """The plan that lowers these ops; without a tau its own loss is its loss budget."""
    gains, format_name = one.gains, lower_format(one.gains)
    loss_mse = one.losses.loss_mse(format_name)
    formats = {op: gains.base for group in gains.groups for op in group.ops}
    formats.update(dict.fromkeys(listed, format_name))
    total = gains.total(formats)
    if total is None:
        message = (
            f"the {strategy} plan lowers ops together whose gain was not measured "
            f"({gains.objective}); take another tau, seed or objective"
        )
        raise InputError(message)
    status = "not optimised: ops by value per gain"
    if strategy in BASELINES:
        status = f"not optimised: ops in random order, seed {seed}" if strategy == RANDOM else "not optimised"
    origin = Origin(strategy, tau, status, None, 0.0)
    return make_plan(one, formats, total[0], math.fsum(loss_mse[op] for op in listed), origin)


def lower_format(gains: Gains) -> str:
    """The first format below the base that any configuration has.

    Raises:
        InputError: there is none.
    """
    for group in gains.groups:
        for configuration in group.configurations:
            for format_name in configuration:
                if format_name != gains.base:
                    return format_name
    message = f"no op can leave {gains.base}, so there is nothing to choose"
    raise InputError(message)


def order(one: Program, strategy: str, seed: int, values: OpValues | None = None) -> list[tuple[str, ...]]:
    """Ops that can leave the base format, step by step: in graph order, shuffled, or by value per gain.

    The first step holds those that must leave it, which may be none; after it, ops that share one format
    in every configuration are one step.
    """
    format_name = lower_format(one.gains)
    first: list[str] = []
    steps: list[tuple[str, ...]] = []
    for group, options in zip(one.gains.groups, one.groups, strict=True):
        alike: dict[tuple[str, ...], list[str]] = {}
        for place, op in enumerate(group.ops):
            alike.setdefault(tuple(option.configuration[place] for option in options), []).append(op)
        for formats, ops in alike.items():
            if one.gains.base not in formats:
                first += ops
            elif format_name in formats:
                steps.append(tuple(ops))
    if strategy == RANDOM:
        random.Random(seed).shuffle(steps)
    if values is not None:
        steps = _by_value(steps, one.gains, format_name, values)
    return [tuple(first), *steps]


def _by_value(
    steps: Sequence[tuple[str, ...]], gains: Gains, format_name: str, values: OpValues
) -> list[tuple[str, ...]]:
    """Steps by the value that they give away per gain; without those that have no value, or gain nothing."""
    known, rates = values.values.get(format_name, {}), {}
    for step in steps:
        total = gains.total(dict.fromkeys(step, format_name))
        if total is not None and total[0] > 0 and all(op in known for op in step):
            rates[step] = math.fsum(known[op] for op in step) / total[0]
    return sorted(rates, key=rates.__getitem__)


def baseline_curve(one: Program, strategy: str, seed: int, level: float = DEFAULT_CONFIDENCE) -> Curve:
    """Gain and loss after every step of a baseline, from none to all that it lowers.

    Steps whose gain is not known (a combination that was not measured) are left out.
    """
    format_name = lower_format(one.gains)
    steps = order(one, strategy, seed)
    column = {op: place for place, op in enumerate(one.losses.ops)}
    samples = one.losses.sample_loss_mse(format_name)
    rows = np.stack([samples[:, [column[op] for op in step]].sum(axis=1) for step in steps], axis=1)
    rows = rows.cumsum(axis=1)
    cache = one.losses.cache_loss_mse[:, None]
    lowered = np.cumsum([len(step) for step in steps]).tolist()
    interval = loss_interval(rows + cache, level, one.losses.drift)
    gains = _gains_step_by_step(one.gains, steps, format_name)
    kept = [k for k, gain in enumerate(gains) if gain is not None]
    return Curve(
        strategy,
        seed,
        tuple(lowered[k] for k in kept),
        tuple(gain for gain in gains if gain is not None),
        tuple(one.losses.with_drift(d) for d in rows.mean(axis=0)[kept].tolist()),
        tuple(np.asarray(interval.low)[kept].tolist()),
        tuple(np.asarray(interval.high)[kept].tolist()),
    )


def _gains_step_by_step(gains: Gains, steps: Sequence[Sequence[str]], format_name: str) -> list[float | None]:
    """Total gain after each step; only the gains of its own groups change."""
    group_of = {op: j for j, group in enumerate(gains.groups) for op in group.ops}
    place_of = {op: place for group in gains.groups for place, op in enumerate(group.ops)}
    chosen = [[gains.base] * len(group.ops) for group in gains.groups]
    gain_of = [dict(zip(group.configurations, group.gain, strict=True)) for group in gains.groups]
    known = [gain.get(tuple(one)) for gain, one in zip(gain_of, chosen, strict=True)]
    totals: list[float | None] = []
    for step in steps:
        for op in step:
            chosen[group_of[op]][place_of[op]] = format_name
        for j in {group_of[op] for op in step}:
            known[j] = gain_of[j].get(tuple(chosen[j]))
        numbers = [gain for gain in known if gain is not None]
        totals.append(math.fsum(numbers) if len(numbers) == len(known) else None)
    return totals
