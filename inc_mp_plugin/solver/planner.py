"""From gains and sensitivities to a plan: the largest gain for a loss, the least loss or value for a gain."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.literals import Strategy
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.milp import Candidate, Choice, choose, total, within
from inc_mp_plugin.solver.program import Option, Origin, Program, infeasible, least_tau, make_plan
from inc_mp_plugin.solver.ties import constrained_program, held_to
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, check_confidence

IP_MSE: Strategy = "ip_mse"
_HALVINGS = 12  # of the correction: to 1/4096 of the loss budget


def solve(
    gains: Gains,
    sensitivity: Sensitivity | LossModel,
    tau: float | None = None,
    *,
    gain_fraction: float | None = None,
    budget: float | None = None,
    values: OpValues | None = None,
    confidence: float | None = None,
    correction: float = 1.0,
    demands: Demands = NO_DEMANDS,
) -> Plan:
    """Choose a configuration for every group.

    With `tau`: the largest gain whose predicted loss MSE is within the loss budget (eq. 5)::

        max sum_j c_j(p)    s.t.    sum_j d_j(p) <= correction tau^2 E[g^2]
        d_j(p) = sum over the group's ops of d(op, format)           (eq. 22 to 25)

    Where the noise was measured, the loss MSE of a plan is the sum of d with the drift of the mean loss
    (see `LossModel`). The drift grows with that sum alone, so the program is the same, with a smaller
    capacity.

    With `gain_fraction`: the least predicted loss MSE that still gains this fraction of the largest
    gain there is. With `budget`: the least predicted loss MSE of the plans that cost at most this fraction
    of what everything costs in the base format, so gain the rest of that cost. If tau is given as well, a
    plan that is not within tau is refused.

    With `values` (EAGL's or ALPS's) the plan is that of the least sum of the values of the lowered ops,
    instead of their loss MSE: the knapsack of arXiv 2301.13330, the most value kept within a budget of
    cost. `budget` or `gain_fraction` gives that budget (for a threshold see `baseline`). An op without a
    value stays in the base format.

    With `confidence` the upper end of the loss MSE's interval must be within tau^2 E[g^2], not only the
    mean. The correction is then the largest that a bisection finds for this condition.

    An op in the base format adds no loss. An op without a sensitivity (calibration never ran the op) stays
    in the base format.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        tau: threshold of the normalized RMSE of the loss, above 0.
        gain_fraction: fraction of the largest gain, above 0 and at most 1.
        budget: instead of gain_fraction, fraction of the cost of everything in the base format, above 0
            and at most 1.
        values: prices of the ops, if these are not their loss MSE.
        confidence: probability, between 0 and 1.
        correction: factor on the loss budget, above 0: measured losses may ask for another than 1.
        demands: of the consumers of the plan: ops that share a format, and ops that must be in one format.
            Demands restrict the configurations before anything is solved.

    Raises:
        InputError: tau, gain_fraction, budget or confidence is missing or out of range.
        InfeasibleError: no plan meets the constraint; the text names the least that can be met.

    Example:
        >>> import numpy as np
        >>> from inc_mp_plugin.core.gains import GroupGains
        >>> group = GroupGains(("a",), (("bf16",), ("fp8_e4m3",)), (0.0, 8.0), (0.0, 0.0))
        >>> gains = Gains("memory", "byte", "exact", "bf16", (group,))
        >>> sensitivity = Sensitivity(("a",), np.ones(1), np.ones((1, 1)), np.ones((1, 1)))
        >>> plan = solve(gains, sensitivity, tau=0.1)
        >>> plan.formats["a"], plan.gain, round(plan.nrmse, 4)
        ('fp8_e4m3', 8.0, 0.051)
    """
    check_knobs(tau, gain_fraction, budget)
    if confidence is not None:
        check_confidence(confidence)
    program = constrained_program(gains, sensitivity, demands)
    level = DEFAULT_CONFIDENCE if confidence is None else confidence
    gain = program.required_gain(gain_fraction, budget)
    if gain is None and values is not None:
        message = (
            f"tau cannot bound the values of {values.method}, which are no losses: "
            "give budget or gain_fraction"
        )
        raise InputError(message)
    if gain is not None:
        choice = least_loss(program, gain) if values is None else least_value(program, values, gain)
        strategy = IP_MSE if values is None else values.method
        plan = _plan(program, choice, tau, level=level, strategy=strategy)
        _check_tau(plan, float(gain), tau, confidence=confidence, loss_ms=program.losses.loss_ms)
    elif confidence is None:
        plan = _most_gain(program, float(tau or 0.0), correction, level=level, demands=demands)
    else:
        plan = _within_interval(program, float(tau or 0.0), correction, level=level, demands=demands)
    return held_to(demands, plan, gains, program)


def least_loss(program: Program, gain: Fraction) -> Choice:
    """Find the choice of least loss MSE that gains this much, exactly.

    The same knapsack with the roles changed: the value is the loss saved, the cost the gain lost.
    """
    return choose([[Candidate(-o.loss_mse, -o.gain) for o in group] for group in program.groups], -gain)


def least_value(program: Program, values: OpValues, gain: Fraction) -> Choice:
    """Find the choice that gains this much with the least sum of the values of the ops that it lowers.

    With v(op, f) the value of keeping an op, the most value within a budget of cost (section 3.1 of
    arXiv 2301.13330)::

        min sum v(op, f) over lowered ops    s.t.    sum_j c_j(p) >= gain

    An op stays in the base format if it has no value.

    Args:
        program: the priced configurations.
        values: of EAGL or ALPS.
        gain: exactly, in the unit of the gains.

    Raises:
        InputError: an op must leave the base format, and has no value.
        InfeasibleError: ops that have a value do not gain as much.
    """
    groups, places = [], []
    base, method = program.gains.base, values.method
    for group, options in zip(program.gains.groups, program.groups, strict=True):
        sums = {place: _value_lost(group.ops, option, base, values) for place, option in enumerate(options)}
        lost = {place: value for place, value in sums.items() if value is not None}
        if not lost:
            message = (
                f"{method} has no value for an op among {', '.join(group.ops[:3])}, and the consumers of the "
                "plan need that op in a lower format; use strategy ip_mse"
            )
            raise InputError(message)
        groups.append([Candidate(-value, -options[place].gain) for place, value in lost.items()])
        places.append(tuple(lost))
    most = total(max(-candidate.cost for candidate in group) for group in groups)
    if gain > most:
        message = (
            f"{method} has no value for some ops (products without a weight, and ops that no sample "
            f"reached), which stay in {base}: the other ops gain at most {float(most / program.most):.4g} of "
            f"the largest gain, not {float(gain / program.most):.4g}; ask for less, or use strategy ip_mse"
        )
        raise InfeasibleError(message)
    choice = choose(groups, -gain)
    return replace(choice, picks=tuple(part[p] for part, p in zip(places, choice.picks, strict=True)))


def _value_lost(ops: tuple[str, ...], option: Option, base: str, values: OpValues) -> float | None:
    """Add up the values of the ops that a configuration lowers; None if one of them has no value."""
    lowered = [(op, f) for op, f in zip(ops, option.configuration, strict=True) if f != base]
    if not all(op in values.values.get(format_name, {}) for op, format_name in lowered):
        return None
    return math.fsum(values.values[format_name][op] for op, format_name in lowered)


def _check_tau(
    plan: Plan, gain: float, tau: float | None, *, confidence: float | None, loss_ms: float
) -> None:
    reached = plan.loss_mse if confidence is None else plan.interval.high
    if tau is not None and reached > tau**2 * loss_ms:
        condition = "" if confidence is None else f" at a confidence of {confidence:g}"
        none = "no plan gains" if plan.strategy == IP_MSE else f"the {plan.strategy} plan does not gain"
        share = gain / plan.largest_gain if plan.largest_gain else 0.0
        message = (
            f"{none} {share:.3g} of the largest gain within tau {tau:.6g}{condition}; "
            f"the least tau that allows it is {least_tau(math.sqrt(reached / loss_ms))}"
        )
        raise InfeasibleError(message)


def _most_gain(
    program: Program, tau: float, correction: float, *, level: float, demands: Demands = NO_DEMANDS
) -> Plan:
    """Make the plan of the largest gain within correction tau^2 E[g^2].

    Raises:
        InfeasibleError: what the demands fix exceeds that.
    """
    loss_budget = correction * tau**2 * program.losses.loss_ms
    capacity = program.losses.without_drift(loss_budget)
    if not within(program.least_losses, capacity):
        nrmse = program.nrmse(math.fsum(program.least_losses)) / math.sqrt(correction)
        limit = f"tau {tau:.6g} allows"
        raise infeasible(program, demands, loss_budget=loss_budget, nrmse=nrmse, limit=limit)
    return _plan(program, choose(program.candidates, capacity), tau, correction, level=level)


def _within_interval(
    program: Program, tau: float, correction: float, *, level: float, demands: Demands
) -> Plan:
    """Find the plan of the largest gain whose interval ends within the loss budget, by bisection.

    The upper end is nearly the same multiple of the mean for every plan, so a bisection comes close.
    """
    loss_ms = program.losses.loss_ms
    loss_budget = tau**2 * loss_ms
    fixed = program.losses.with_drift(math.fsum(program.least_losses))
    lower, upper = (1.0 + 1e-9) * fixed / loss_budget, 1.0
    if lower <= correction:
        plan = _most_gain(program, tau, correction, level=level)
        if plan.interval.high <= loss_budget:
            return plan
    best = _most_gain(program, tau, lower, level=level)
    if lower > upper or best.interval.high > loss_budget:
        nrmse = math.sqrt(max(best.interval.high, fixed) / loss_ms)
        limit = f"tau {tau:.6g} allows at a confidence of {level:g}, where the interval's upper end counts"
        raise infeasible(program, demands, loss_budget=loss_budget, nrmse=nrmse, limit=limit)
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        plan = _most_gain(program, tau, middle, level=level)
        if plan.interval.high > loss_budget:
            upper = middle
        else:
            lower, best = middle, max(best, plan, key=lambda p: p.gain)
    return best


def _plan(
    program: Program,
    choice: Choice,
    tau: float | None,
    correction: float = 1.0,
    *,
    level: float,
    strategy: str = IP_MSE,
) -> Plan:
    gain, loss_mse = program.totals(choice.picks)
    origin = Origin(strategy, tau, choice.status.value, choice.gap, choice.seconds, correction, level)
    return make_plan(program, program.formats(choice.picks), origin, gain=gain, loss_mse=loss_mse)
