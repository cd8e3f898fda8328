"""Plans without a program (section 3.1): ops lowered in some order, up to a threshold, or all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.costs import Costs, costs_of
from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.frontier import Curve
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.knobs import KEY_OF, check_knobs, constraint_of
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.limits import Limits, infeasible
from inc_mp_plugin.solver.orders import (
    BASELINES,
    BY_LAYERS,
    ENDS,
    PRACTICE,
    PREFIX,
    RANDOM,
    UNIFORM,
    Step,
    lower_format,
    order,
)
from inc_mp_plugin.solver.plans import Origin, make_plan
from inc_mp_plugin.solver.program import Program, Totals, make_program
from inc_mp_plugin.solver.ties import constrained_program
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, curve_costs

_WHOLE = (UNIFORM, PRACTICE)  # sets of ops, whatever the thresholds
_ORDERS = {
    PREFIX: "",
    UNIFORM: "",
    PRACTICE: ": all linear ops but the head",
    ENDS: ": layers from the middle to both ends",
}


def baseline(
    gains: Gains,
    sensitivity: Sensitivity | CostModel | Costs,
    strategy: str,
    tau: float | None = None,
    *,
    kl: float | None = None,
    seed: int = 0,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
    graph: Graph | None = None,
) -> Plan:
    """Make the plan of a baseline, which lowers op after op while the loss budget allows.

    `random` takes the ops in an order drawn from `seed`, `prefix` in graph order. Both stop before the
    first op that would lift the predicted loss MSE above tau^2 E[g^2], or the KL divergence above kl.
    `ends` goes from the middle layer to both ends, so that the first and the last layers, and what is in no
    layer, stay longest. `uniform` lowers all ops, `practice` all linear ones but the head, whatever the
    thresholds; the budgets are then what is predicted. All take the first lower format.

    The values of EAGL and ALPS are no losses, so a threshold is met in this way, too: ops come in the order
    of value per gain, the least first, and each op is lowered that the loss budget still allows.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`, or `Costs`.
        strategy: one of BASELINES or BY_LAYERS, or the method of the values.
        tau: threshold of the normalized RMSE of the loss, above 0.
        kl: threshold of the KL divergence, nats per token, above 0.
        seed: of the order of `random`.
        demands: of the consumers of the plan, as in `solve`.
        values: of EAGL or ALPS.
        graph: of the model, for BY_LAYERS.

    Raises:
        InputError: an unknown strategy, one by layers without a graph or of a model without layers, a
            threshold out of range, or a combination of ops without a gain.
        InfeasibleError: the ops that must leave the base format cost more than a threshold allows.
    """
    check_knobs(tau, None, kl=kl)
    known = (*BASELINES, *BY_LAYERS)
    if strategy not in known and (values is None or strategy != values.method):
        raise InputError(unknown("baseline", strategy, known))
    program = constrained_program(gains, sensitivity, demands)
    steps = order(program, strategy, seed, values=values, graph=graph)
    limits = Limits() if strategy in _WHOLE else Limits(tau, kl)
    if strategy in _WHOLE:
        ops = [op for step in steps for op in step]
    else:
        ops = _within(program, steps, limits, demands, skips=values is not None)
    plan = _lower(program, ops, strategy, seed=seed, limits=limits)
    return replace(plan, targets=demands.targets, serving=demands.serving)


def _within(
    program: Program, steps: Sequence[Step], limits: Limits, demands: Demands, *, skips: bool
) -> list[str]:
    """List the ops of the steps that the thresholds allow, up to the first that they do not, or past it."""
    ops = list(steps[0])
    totals = _totals(program, ops)
    for yardstick in limits.exceeded(program, totals):
        key, threshold = KEY_OF[yardstick], dict(limits.given())[yardstick]
        raise infeasible(
            program,
            demands,
            yardstick=yardstick,
            budget=limits.budget(program.costs, yardstick),
            value=program.predicted(totals, yardstick),
            limit=f"{key} {threshold:.6g} allows",
        )
    for step in steps[1:]:
        if not limits.exceeded(program, _totals(program, [*ops, *step])):
            ops += step
        elif not skips:
            break
    return ops


def _totals(program: Program, ops: Sequence[str], gain: float = 0.0) -> Totals:
    """Add up what ops cost in the first lower format."""
    prices = program.prices[lower_format(program.gains)]
    columns = zip(*(prices[op] for op in ops), strict=True)
    return Totals(gain, *map(math.fsum, columns)) if ops else Totals(gain)


def baseline_gaining(
    gains: Gains,
    sensitivity: Sensitivity | CostModel | Costs,
    strategy: str,
    gain: float,
    *,
    seed: int = 0,
    graph: Graph | None = None,
) -> Plan:
    """Make the first plan of a baseline, op after op, that gains this much; see `baseline`.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        strategy: `random`, `prefix` or `ends`.
        gain: the least that is enough, in the unit of the gains.
        seed: of the order of `random`.
        graph: of the model, for `ends`.

    Raises:
        InputError: no plan of the baseline gains as much, or no op can leave the base format.
    """
    program = make_program(gains, costs_of(sensitivity))
    steps = order(program, strategy, seed, graph=graph)
    totals = _gains_step_by_step(program.gains, steps)
    enough = next((k for k, reached in enumerate(totals, 1) if reached >= gain), None)
    if enough is None:
        largest = max(reached for reached in totals if not math.isnan(reached))
        message = f"the {strategy} baseline never gains {gain:.6g}; its largest gain is {largest:.6g}"
        raise InputError(message)
    lowered = [op for step in steps[:enough] for op in step]
    return _lower(program, lowered, strategy, seed=seed, limits=Limits())


def _lower(program: Program, ops: Sequence[str], strategy: str, *, seed: int, limits: Limits) -> Plan:
    """Make the plan that lowers these ops; without a threshold its own cost is its budget."""
    gains = program.gains
    formats = {op: gains.base for group in gains.groups for op in group.ops}
    formats.update(dict.fromkeys(ops, lower_format(gains)))
    total = gains.total(formats)
    if total is None:
        message = (
            f"the {strategy} plan lowers a combination of ops whose gain was not measured "
            f"({gains.objective}); take another threshold, seed or objective"
        )
        raise InputError(message)
    orders = {**_ORDERS, RANDOM: f": ops in random order, seed {seed}"}
    status = "not optimised" + orders.get(strategy, ": ops by value per gain")
    constraint = constraint_of(limits.tau, limits.kl, None if program.costs.kl else "loss")
    origin = Origin(strategy, limits.tau, status, constraint=constraint, kl=limits.kl)
    return make_plan(program, formats, origin, _totals(program, ops, total[0]))


def baseline_curve(
    program: Program,
    yardstick: Yardstick,
    strategy: str,
    seed: int,
    *,
    level: float = DEFAULT_CONFIDENCE,
    graph: Graph | None = None,
) -> Curve:
    """Compute gain and cost after every step of a baseline, from the first step to the last.

    Steps whose gain is not known (a combination that was not measured) are left out.

    Args:
        program: the priced configurations.
        yardstick: of the costs.
        strategy: `random`, `prefix` or `ends`; of `practice`, the last point is the plan.
        seed: of the order of `random`.
        level: of the confidence intervals.
        graph: of the model, for `practice` and `ends`.
    """
    steps = order(program, strategy, seed, graph=graph)
    model, format_name = program.costs.by(yardstick), lower_format(program.gains)
    column = {op: place for place, op in enumerate(model.ops)}
    samples = model.row_costs(format_name)
    rows = np.stack([samples[:, [column[op] for op in step]].sum(axis=1) for step in steps], axis=1)
    rows = rows.cumsum(axis=1) + model.cache_row_costs[:, None]
    lowered = np.cumsum([len(step) for step in steps])
    prices = program.prices[format_name]
    shifts = np.cumsum([math.fsum(prices[op].shift for op in step) for step in steps])
    costs, lower, upper = curve_costs(model, rows, shifts, level)
    gains = np.array(_gains_step_by_step(program.gains, steps))
    measured = ~np.isnan(gains)
    return Curve(
        strategy,
        seed,
        *(tuple(part[measured].tolist()) for part in (lowered, gains, costs, lower, upper)),
    )


def _gains_step_by_step(gains: Gains, steps: Sequence[Step]) -> list[float]:
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
