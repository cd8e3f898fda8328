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
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.results import Curve
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.program import Origin, Program, infeasible, make_plan, make_program
from inc_mp_plugin.solver.ties import constrained_program
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
    """Make the plan of a baseline, which lowers op after op while the loss budget allows.

    `random` takes the ops in an order drawn from `seed`, `prefix` in graph order. Both stop before the
    first op that would lift the predicted loss MSE above tau^2 E[g^2]. `uniform` lowers all ops, whatever
    the threshold; the loss budget is then the predicted loss MSE. All take the first lower format.

    The values of EAGL and ALPS are no losses, so a threshold is met in this way, too: ops come in the order
    of value per gain, the least first, and each op is lowered that the loss budget still allows.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        strategy: one of BASELINES, or the method of the values.
        tau: threshold of the normalized RMSE of the loss, above 0.
        seed: of the order of `random`.
        demands: of the consumers of the plan, as in `solve`.
        values: of EAGL or ALPS.

    Raises:
        InputError: an unknown strategy, a tau out of range, or a combination of ops without a gain.
        InfeasibleError: the ops that must leave the base format cost more than tau allows.
    """
    check_knobs(tau, None)
    if strategy not in BASELINES and (values is None or strategy != values.method):
        raise InputError(unknown("baseline", strategy, BASELINES))
    program = constrained_program(gains, sensitivity, demands)
    steps = order(program, strategy, seed, values)
    lowered = [op for step in steps for op in step]
    if strategy != UNIFORM:
        loss_mse = program.losses.loss_mse(lower_format(program.gains))
        loss_budget = tau**2 * program.losses.loss_ms
        capacity = program.losses.without_drift(loss_budget)
        lowered = list(steps[0])
        spent = [loss_mse[op] for op in lowered]
        if math.fsum(spent) > capacity:
            nrmse, limit = program.nrmse(math.fsum(spent)), f"tau {tau:.6g} allows"
            raise infeasible(program, demands, loss_budget=loss_budget, nrmse=nrmse, limit=limit)
        for step in steps[1:]:
            with_step = [*spent, *(loss_mse[op] for op in step)]
            if math.fsum(with_step) <= capacity:
                spent = with_step
                lowered += step
            elif values is None:
                break
    plan = _lower(program, lowered, strategy, seed=seed, tau=None if strategy == UNIFORM else tau)
    return replace(plan, targets=demands.targets, serving=demands.serving)


def baseline_gaining(
    gains: Gains, sensitivity: Sensitivity | LossModel, strategy: str, gain: float, *, seed: int = 0
) -> Plan:
    """Make the first plan of a baseline, op after op, that gains this much; see `baseline`.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        strategy: `random` or `prefix`.
        gain: the least that is enough, in the unit of the gains.
        seed: of the order of `random`.

    Raises:
        InputError: no plan of the baseline gains as much, or no op can leave the base format.
    """
    program = make_program(gains, loss_model(sensitivity))
    steps = order(program, strategy, seed)
    totals = _gains_step_by_step(program.gains, steps)
    enough = next((k for k, reached in enumerate(totals, 1) if reached >= gain), None)
    if enough is None:
        largest = max(reached for reached in totals if not math.isnan(reached))
        message = f"the {strategy} baseline never gains {gain:.6g}; its largest gain is {largest:.6g}"
        raise InputError(message)
    lowered = [op for step in steps[:enough] for op in step]
    return _lower(program, lowered, strategy, seed=seed, tau=None)


def _lower(program: Program, ops: Sequence[str], strategy: str, *, seed: int, tau: float | None) -> Plan:
    """Make the plan that lowers these ops; without a tau its own loss is its loss budget."""
    gains, format_name = program.gains, lower_format(program.gains)
    loss_mse = program.losses.loss_mse(format_name)
    formats = {op: gains.base for group in gains.groups for op in group.ops}
    formats.update(dict.fromkeys(ops, format_name))
    total = gains.total(formats)
    if total is None:
        message = (
            f"the {strategy} plan lowers a combination of ops whose gain was not measured "
            f"({gains.objective}); take another tau, seed or objective"
        )
        raise InputError(message)
    orders = {PREFIX: "", UNIFORM: "", RANDOM: f": ops in random order, seed {seed}"}
    origin = Origin(strategy, tau, "not optimised" + orders.get(strategy, ": ops by value per gain"))
    return make_plan(program, formats, origin, gain=total[0], loss_mse=math.fsum(loss_mse[op] for op in ops))


def lower_format(gains: Gains) -> str:
    """Return the first format below the base that any configuration has.

    Raises:
        InputError: there is none.
    """
    formats = (
        name for group in gains.groups for c in group.configurations for name in c if name != gains.base
    )
    format_name = next(formats, None)
    if format_name is None:
        message = f"no op can leave {gains.base}, so there is nothing to choose"
        raise InputError(message)
    return format_name


def order(
    program: Program, strategy: str, seed: int, values: OpValues | None = None
) -> list[tuple[str, ...]]:
    """Order the ops that can leave the base format: in graph order, shuffled, or by value per gain.

    The first step holds the ops that must leave the base format, which may be none. After it, ops that
    share one format in every configuration are one step.

    Args:
        program: the priced configurations.
        strategy: one of BASELINES, or the method of the values.
        seed: of the order of `random`.
        values: of EAGL or ALPS.
    """
    format_name = lower_format(program.gains)
    first: list[str] = []
    steps: list[tuple[str, ...]] = []
    for group, options in zip(program.gains.groups, program.groups, strict=True):
        alike: dict[tuple[str, ...], list[str]] = {}
        for place, op in enumerate(group.ops):
            alike.setdefault(tuple(option.configuration[place] for option in options), []).append(op)
        for formats, ops in alike.items():
            if program.gains.base not in formats:
                first += ops
            elif format_name in formats:
                steps.append(tuple(ops))
    if strategy == RANDOM:
        random.Random(seed).shuffle(steps)
    if values is not None:
        steps = _by_value(steps, program.gains, format_name, values)
    return [tuple(first), *steps]


def _by_value(
    steps: Sequence[tuple[str, ...]], gains: Gains, format_name: str, values: OpValues
) -> list[tuple[str, ...]]:
    """Sort steps by the value lost per gain; leave out those that have no value, or gain nothing."""
    value_of, rates = values.values.get(format_name, {}), {}
    for step in steps:
        total = gains.total(dict.fromkeys(step, format_name))
        if total is not None and total[0] > 0 and all(op in value_of for op in step):
            rates[step] = math.fsum(value_of[op] for op in step) / total[0]
    return sorted(rates, key=rates.__getitem__)


def baseline_curve(program: Program, strategy: str, seed: int, level: float = DEFAULT_CONFIDENCE) -> Curve:
    """Compute gain and loss after every step of a baseline, from the first step to the last.

    Steps whose gain is not known (a combination that was not measured) are left out.

    Args:
        program: the priced configurations.
        strategy: `random` or `prefix`.
        seed: of the order of `random`.
        level: of the confidence intervals.
    """
    losses = program.losses
    steps = order(program, strategy, seed)
    column = {op: place for place, op in enumerate(losses.ops)}
    samples = losses.sample_loss_mse(lower_format(program.gains))
    rows = np.stack([samples[:, [column[op] for op in step]].sum(axis=1) for step in steps], axis=1)
    rows = rows.cumsum(axis=1)
    lowered = np.cumsum([len(step) for step in steps])
    interval = loss_interval(rows + losses.cache_loss_mse[:, None], level, losses.drift)
    gains = np.array(_gains_step_by_step(program.gains, steps))
    measured = ~np.isnan(gains)
    return Curve(
        strategy,
        seed,
        tuple(lowered[measured].tolist()),
        tuple(gains[measured].tolist()),
        tuple(losses.with_drift(d) for d in rows.mean(axis=0)[measured].tolist()),
        tuple(np.asarray(interval.low)[measured].tolist()),
        tuple(np.asarray(interval.high)[measured].tolist()),
    )


def _gains_step_by_step(gains: Gains, steps: Sequence[Sequence[str]]) -> list[float]:
    """Add up the gains of the groups after each step; NaN where a combination was not measured.

    A step changes the gains of its own groups alone.
    """
    format_name = lower_format(gains)
    group_of = {op: j for j, group in enumerate(gains.groups) for op in group.ops}
    gain_of = [dict(zip(group.configurations, group.gain, strict=True)) for group in gains.groups]
    formats = dict.fromkeys(group_of, gains.base)

    def group_gain(j: int) -> float:
        return gain_of[j].get(tuple(formats[op] for op in gains.groups[j].ops), math.nan)

    group_gains = [group_gain(j) for j in range(len(gains.groups))]
    totals = []
    for step in steps:
        formats.update(dict.fromkeys(step, format_name))
        for j in {group_of[op] for op in step}:
            group_gains[j] = group_gain(j)
        totals.append(math.fsum(group_gains))
    return totals
