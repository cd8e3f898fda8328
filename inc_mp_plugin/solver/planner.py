"""From gains and sensitivities to a plan: the largest gain for a loss, the least loss or value for a gain."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.knobs import KEY_OF, check_knobs, constraint_of
from inc_mp_plugin.core.literals import Strategy, Yardstick
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.limits import Limits, infeasible, least_threshold
from inc_mp_plugin.solver.milp import Choice
from inc_mp_plugin.solver.optimum import least_cost, most_gain
from inc_mp_plugin.solver.plans import Origin, make_plan
from inc_mp_plugin.solver.program import Program
from inc_mp_plugin.solver.ties import constrained_program, held_to
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, LEAST_ROWS, check_confidence
from inc_mp_plugin.solver.valued import least_value

IP_MSE: Strategy = "ip_mse"
_HALVINGS = 12  # of the correction: to 1/4096 of the loss budget


def solve(
    gains: Gains,
    sensitivity: Sensitivity | CostModel | Costs,
    tau: float | None = None,
    *,
    kl: float | None = None,
    gain_fraction: float | None = None,
    budget: float | None = None,
    constraint: Yardstick | None = None,
    values: OpValues | None = None,
    confidence: float | None = None,
    correction: float = 1.0,
    demands: Demands = NO_DEMANDS,
) -> Plan:
    """Choose a configuration for every group.

    With `tau`: the largest gain whose predicted loss MSE is within the loss budget (eq. 5)::

        max sum_j c_j(p)    s.t.    sum_j d_j(p) <= correction tau^2 E[g^2]
        d_j(p) = sum over the group's ops of d(op, format)           (eq. 22 to 25)

    Where the noise was measured, the loss MSE of a plan is the sum of d and the square of the shift of the
    mean loss (see `LossModel`).

    With `kl`: the largest gain whose predicted KL divergence is within correction kl, nats per token. With
    both, both hold: the program has two rows.

    With `gain_fraction`: the least predicted loss MSE or KL divergence, as `constraint` says, that still
    gains this fraction of the largest gain there is. With `budget`: the least of the plans that cost at most
    this fraction of what everything costs in the base format, so gain the rest of that cost. If tau or kl is
    given as well, a plan that is not within it is refused.

    With `values` (EAGL's or ALPS's) the plan is that of the least sum of the values of the lowered ops,
    instead of their loss MSE: the knapsack of arXiv 2301.13330, the most value kept within a budget of
    cost. `budget` or `gain_fraction` gives that budget (for a threshold see `baseline`). An op without a
    value stays in the base format.

    With `confidence` the upper end of the interval must be within tau^2 E[g^2], or kl, not only the mean.
    The correction is then the largest that a bisection finds for this condition.

    An op in the base format adds no loss. An op without a sensitivity (calibration never ran the op) stays
    in the base format.

    Args:
        gains: of every configuration of every group, for one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`, or `Costs`.
        tau: threshold of the normalized RMSE of the loss, above 0.
        kl: threshold of the KL divergence, nats per token, above 0.
        gain_fraction: fraction of the largest gain, above 0 and at most 1.
        budget: instead of gain_fraction, fraction of the cost of everything in the base format, above 0
            and at most 1.
        constraint: "loss" or "kl", the yardstick that is least for a given gain; by default that of the
            threshold, else "kl" if it was measured.
        values: prices of the ops, if these are not their loss MSE.
        confidence: probability, between 0 and 1.
        correction: factor on the budgets, above 0: measurements may ask for another than 1.
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
    check_knobs(tau, gain_fraction, budget, kl)
    if confidence is not None:
        check_confidence(confidence)
    program = constrained_program(gains, sensitivity, demands)
    limits = Limits(tau, kl, correction)
    for yardstick, _ in limits.given():
        program.costs.by(yardstick)
    aim = _Aim(constraint_of(tau, kl, constraint or _only(program.costs)), confidence, demands)
    gain = program.required_gain(gain_fraction, budget)
    if gain is None and values is not None:
        message = (
            f"tau and kl cannot bound the values of {values.method}, which are no losses: "
            "give budget or gain_fraction"
        )
        raise InputError(message)
    if gain is not None:
        plan = _gaining(program, gain, limits, aim, values=values)
    elif confidence is None:
        plan = _most_gain(program, limits, aim)
    else:
        plan = _within_interval(program, limits, aim)
    return held_to(demands, plan, gains, program)


class _Aim(NamedTuple):
    """Aim of a solve beside its thresholds."""

    constraint: Yardstick
    confidence: float | None
    demands: Demands

    @property
    def level(self) -> float:
        """Level of the intervals."""
        return DEFAULT_CONFIDENCE if self.confidence is None else self.confidence


def _only(costs: Costs) -> Yardstick | None:
    """Name the yardstick that was measured, if it is a single one."""
    if costs.loss is None or costs.kl is None:
        return "kl" if costs.loss is None else "loss"
    return None


def _gaining(program: Program, gain: Fraction, limits: Limits, aim: _Aim, *, values: OpValues | None) -> Plan:
    """Make the plan of least cost, or of least value, that gains this much."""
    if values is None:
        choice = least_cost(program, aim.constraint, gain, limits)
    else:
        choice = least_value(program, values, gain)
    plan = _plan(program, choice, limits, aim, strategy=values.method if values else IP_MSE)
    _check_limits(program, plan, float(gain), limits, aim=aim)
    return plan


def _check_limits(program: Program, plan: Plan, gain: float, limits: Limits, *, aim: _Aim) -> None:
    """Refuse a plan of a given gain that exceeds a threshold."""
    for yardstick, threshold in limits.given():
        interval = plan.interval if yardstick == "loss" else plan.kl_interval
        value = plan.loss_mse if yardstick == "loss" else plan.predicted_kl
        reached = value if aim.confidence is None or interval is None else interval.high
        if reached is None or reached <= limits.corrected(1.0).budget(program.costs, yardstick):
            continue
        key = KEY_OF[yardstick]
        condition = "" if aim.confidence is None else f" at a confidence of {aim.confidence:g}"
        none = "no plan gains" if plan.strategy == IP_MSE else f"the {plan.strategy} plan does not gain"
        share = gain / plan.largest_gain if plan.largest_gain else 0.0
        message = (
            f"{none} {share:.3g} of the largest gain within {key} {threshold:.6g}{condition}; "
            f"the least {key} that allows it is {least_threshold(program.costs, yardstick, reached)}"
        )
        raise InfeasibleError(message)


def _most_gain(program: Program, limits: Limits, aim: _Aim) -> Plan:
    """Make the plan of the largest gain within the thresholds.

    Raises:
        InfeasibleError: what the demands fix exceeds them.
    """
    least = program.least_totals
    for yardstick in limits.exceeded(program, least):
        threshold = dict(limits.given())[yardstick]
        key = KEY_OF[yardstick]
        raise infeasible(
            program,
            aim.demands,
            yardstick=yardstick,
            budget=limits.budget(program.costs, yardstick),
            value=program.predicted(least, yardstick) / (limits.correction or 1.0),
            limit=f"{key} {threshold:.6g} allows",
        )
    return _plan(program, most_gain(program, limits), limits, aim)


def _within_interval(program: Program, limits: Limits, aim: _Aim) -> Plan:
    """Find the plan of the largest gain whose intervals end within the budgets, by bisection.

    The upper end is nearly the same multiple of the mean for every plan, so a bisection comes close.

    Raises:
        InputError: the KL divergence has too few rows for an interval.
        InfeasibleError: what the demands fix exceeds the budgets.
    """
    _check_rows(program.costs, limits)
    whole, fixed = limits.corrected(1.0), program.least_totals
    shares = [program.predicted(fixed, y) / whole.budget(program.costs, y) for y, _ in limits.given()]
    lower, upper = (1.0 + 1e-9) * max(shares), 1.0
    if lower <= limits.correction:
        plan = _most_gain(program, limits, aim)
        if whole.share(program.costs, plan) <= 1.0:
            return plan
    best = _most_gain(program, limits.corrected(lower or 1e-12), aim)
    share = whole.share(program.costs, best)
    if lower > upper or share > 1.0:
        raise _too_sure(program, limits, aim, max(share, lower))
    for _ in range(_HALVINGS):
        middle = (lower + upper) / 2
        plan = _most_gain(program, limits.corrected(middle), aim)
        if whole.share(program.costs, plan) > 1.0:
            upper = middle
        else:
            lower, best = middle, max(best, plan, key=lambda p: p.gain)
    return best


def _too_sure(program: Program, limits: Limits, aim: _Aim, share: float) -> InfeasibleError:
    """Make the error of an interval whose upper end no plan keeps within a budget."""
    yardstick, threshold = next(limits.given())
    budget = limits.corrected(1.0).budget(program.costs, yardstick)
    key = KEY_OF[yardstick]
    at = f"at a confidence of {aim.level:g}, where the interval's upper end counts"
    limit = f"{key} {threshold:.6g} allows {at}"
    return infeasible(
        program, aim.demands, yardstick=yardstick, budget=budget, value=share * budget, limit=limit
    )


def _check_rows(costs: Costs, limits: Limits) -> None:
    """Refuse a confidence that no interval can give.

    Raises:
        InputError: there are too few rows.
    """
    if limits.kl is None or costs.kl is None:
        return
    sensitivity = costs.kl.sensitivity
    rows, least = len(sensitivity.loss), LEAST_ROWS[sensitivity.rows]
    if rows < least:
        noun = "samples" if sensitivity.rows == "sample" else "batches"
        message = (
            f"confidence needs the KL divergence of at least {least} {noun}, and there are {rows}; give more "
            "samples, smaller batches, or estimator: sample"
        )
        raise InputError(message)


def _plan(program: Program, choice: Choice, limits: Limits, aim: _Aim, *, strategy: str = IP_MSE) -> Plan:
    origin = Origin(
        strategy,
        limits.tau,
        choice.status.value,
        choice.gap,
        choice.seconds,
        correction=limits.correction,
        confidence=aim.level,
        constraint=aim.constraint,
        kl=limits.kl,
    )
    return make_plan(program, program.formats(choice.picks), origin, program.totals(choice.picks))
