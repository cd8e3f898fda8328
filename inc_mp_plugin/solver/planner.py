"""From gains and sensitivities to a plan: the two forms of the program, and what is said of both."""

from __future__ import annotations

import math
from fractions import Fraction

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.op_values import OpValues
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.milp import Candidate, Choice, choose, within
from inc_mp_plugin.solver.program import Origin, Program, infeasible, least_tau, make_plan
from inc_mp_plugin.solver.required_gain import required_gain
from inc_mp_plugin.solver.ties import demanded_program, held_to
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, check_confidence
from inc_mp_plugin.solver.valued import least_value

IP_MSE = "ip_mse"
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

    Where the noise was measured, the loss MSE of a plan is its sum of d with the drift of the mean loss
    (see `LossModel`), which grows with that sum alone: the same program, with a smaller capacity.

    With `gain_fraction`: the least predicted loss MSE that still gains this fraction of the largest
    gain there is. With `budget`: the least among plans that cost at most this fraction of what everything
    costs in the base format, so gain the rest of it. With tau as well, refused if it is not within tau.

    With `values` (EAGL's or ALPS's) the values of the ops that are lowered are to add up to the least,
    instead of their loss MSE: the knapsack of arXiv 2301.13330, the most value kept within a budget of
    cost, which `budget` or `gain_fraction` gives (for a threshold see `baseline`). An op without a value
    stays in its base format.

    With `confidence` the upper end of the loss MSE's interval must be within tau^2 E[g^2], not only its
    mean; the correction is then the largest found by bisection at which it is.

    An op in its base format adds no loss. An op without a sensitivity (calibration never ran it) stays
    in its base format.

    Args:
        gains: what each configuration of each group gains.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        tau: threshold of the normalized RMSE of the loss, above 0.
        gain_fraction: above 0, at most 1.
        budget: instead, of cost, above 0, at most 1.
        values: what ops are priced by, if not by their loss MSE.
        confidence: between 0 and 1.
        correction: of the loss budget, above 0: measured losses may ask for another than 1.
        demands: what the consumers of the plan can run: ops that share a format, and ops that must be in
            one. They restrict the configurations before anything is solved.

    Raises:
        InputError: tau, gain_fraction, budget or confidence is missing or out of range.
        InfeasibleError: no plan meets the constraint; the text names the least that can be met.

    Example:
        >>> import numpy as np
        >>> from inc_mp_plugin.core.gains import GroupGains
        >>> one = GroupGains(("a",), (("bf16",), ("fp8_e4m3",)), (0.0, 8.0), (0.0, 0.0))
        >>> gains = Gains("memory", "byte", "exact", "bf16", (one,))
        >>> seen = Sensitivity(("a",), np.ones(1), np.ones((1, 1)), np.ones((1, 1)))
        >>> plan = solve(gains, seen, tau=0.1)
        >>> plan.formats["a"], plan.gain, round(plan.nrmse, 4)
        ('fp8_e4m3', 8.0, 0.051)
    """
    check_knobs(tau, gain_fraction, budget)
    if confidence is not None:
        check_confidence(confidence)
    one = demanded_program(gains, sensitivity, demands)
    level = DEFAULT_CONFIDENCE if confidence is None else confidence
    gain = required_gain(one, gain_fraction, budget)
    if gain is None and values is not None:
        message = (
            f"the values of {values.method} are no losses that tau could hold: give budget or gain_fraction"
        )
        raise InputError(message)
    if gain is not None:
        plan = _gaining(one, gain, tau, level, values)
        _check_tau(plan, float(gain), tau, confidence, one.losses.loss_ms)
    elif confidence is None:
        plan = solve_primal(one, float(tau or 0.0), correction, level, demands)
    else:
        plan = _within_interval(one, float(tau or 0.0), correction, level, demands)
    return held_to(demands, plan, gains, one)


def solve_primal(
    one: Program,
    tau: float,
    correction: float = 1.0,
    level: float = DEFAULT_CONFIDENCE,
    demands: Demands = NO_DEMANDS,
) -> Plan:
    """The largest gain within correction tau^2 E[g^2].

    Raises:
        InfeasibleError: what the demands fix exceeds that.
    """
    loss_budget = correction * tau**2 * one.losses.loss_ms
    capacity = one.losses.without_drift(loss_budget)
    cheapest = [min(option.loss_mse for option in group) for group in one.groups]
    if not within(cheapest, capacity):
        least = math.fsum(cheapest)
        nrmse = math.sqrt(one.losses.with_drift(least) / one.losses.loss_ms)
        raise infeasible(one, demands, loss_budget, nrmse / math.sqrt(correction), f"tau {tau:.6g} allows")
    choice = choose([[Candidate(o.gain, o.loss_mse) for o in group] for group in one.groups], capacity)
    return _plan(one, choice, tau, correction, level)


def least_loss(one: Program, gain: Fraction) -> Choice:
    """The choice of least loss MSE that gains this much, exactly.

    The same knapsack with the roles changed: the value is the loss saved, the cost the gain lost.
    """
    return choose([[Candidate(-o.loss_mse, -o.gain) for o in group] for group in one.groups], -gain)


def _gaining(
    one: Program, gain: Fraction, tau: float | None, level: float, values: OpValues | None = None
) -> Plan:
    if values is None:
        return _plan(one, least_loss(one, gain), tau, 1.0, level)
    return _plan(one, least_value(one, values, gain), tau, 1.0, level, values.method)


def _check_tau(plan: Plan, gain: float, tau: float | None, confidence: float | None, loss_ms: float) -> None:
    reached = plan.loss_mse if confidence is None else plan.interval.high
    if tau is not None and reached > tau**2 * loss_ms:
        what = "" if confidence is None else f" at a confidence of {confidence:g}"
        none = "no plan gains" if plan.strategy == IP_MSE else f"the {plan.strategy} plan does not gain"
        share = gain / plan.largest_gain if plan.largest_gain else 0.0
        message = (
            f"{none} {share:.3g} of the largest gain within tau {tau:.6g}{what}; "
            f"the least tau that allows it is {least_tau(math.sqrt(reached / loss_ms))}"
        )
        raise InfeasibleError(message)


def _within_interval(one: Program, tau: float, correction: float, level: float, demands: Demands) -> Plan:
    """The plan of largest gain found whose interval ends within the loss budget.

    The upper end is nearly the same multiple of the mean for every plan, so bisection serves.
    """
    loss_budget = tau**2 * one.losses.loss_ms
    fixed = one.losses.with_drift(math.fsum(min(o.loss_mse for o in group) for group in one.groups))
    low, high = (1.0 + 1e-9) * fixed / loss_budget, 1.0
    if low <= correction:
        plan = solve_primal(one, tau, correction, level)
        if plan.interval.high <= loss_budget:
            return plan
    best = solve_primal(one, tau, low, level)
    if low > high or best.interval.high > loss_budget:
        nrmse = math.sqrt(max(best.interval.high, fixed) / one.losses.loss_ms)
        limit = f"tau {tau:.6g} allows at a confidence of {level:g}, where the interval's upper end counts"
        raise infeasible(one, demands, loss_budget, nrmse, limit)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        plan = solve_primal(one, tau, middle, level)
        if plan.interval.high > loss_budget:
            high = middle
        else:
            low, best = middle, max(best, plan, key=lambda p: p.gain)
    return best


def _plan(
    one: Program, choice: Choice, tau: float | None, correction: float, level: float, strategy: str = IP_MSE
) -> Plan:
    picked = [group[pick] for group, pick in zip(one.groups, choice.picks, strict=True)]
    origin = Origin(strategy, tau, choice.status.value, choice.gap, choice.seconds, correction, level)
    gain = math.fsum(option.gain for option in picked)
    first_order = math.fsum(option.loss_mse for option in picked)
    return make_plan(one, one.formats(choice.picks), gain, first_order, origin)
