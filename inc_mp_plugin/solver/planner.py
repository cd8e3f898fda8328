"""From gains and sensitivities to a plan: the two forms of the program, and what is said of both."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inc_mp_plugin.errors import InfeasibleError, InputError
from inc_mp_plugin.formats import alpha
from inc_mp_plugin.plan import Gains, GroupGains, Plan, Sensitivity
from inc_mp_plugin.solver.milp import Candidate, Choice, choose


def solve(
    gains: Gains,
    sensitivity: Sensitivity,
    tau: float | None = None,
    *,
    gain_fraction: float | None = None,
) -> Plan:
    """Choose a configuration for every group.

    With `tau`: the largest gain whose predicted loss MSE is within the budget (eq. 5)::

        max sum_j c_j(p)    s.t.    sum_j d_j(p) <= tau^2 E[g^2]
        d_j(p) = sum over the group's ops of alpha_format s          (eq. 22 to 25)

    With `gain_fraction`: the least predicted loss MSE that still gains this fraction of the largest
    gain there is; with both, the latter, refused if it is not within tau.

    An op in its base format adds no loss. An op without a sensitivity (calibration never ran it) stays
    in its base format.

    Args:
        gains: what each configuration of each group gains.
        sensitivity: from `measure_sensitivity`.
        tau: threshold of the normalized RMSE of the loss, above 0.
        gain_fraction: above 0, at most 1.

    Raises:
        InputError: tau or gain_fraction is missing or out of range.
        InfeasibleError: no plan meets the constraint; the text names the least that can be met.

    Example:
        >>> import numpy as np
        >>> one = GroupGains(("a",), (("bf16",), ("fp8_e4m3",)), (0.0, 8.0), (0.0, 0.0))
        >>> gains = Gains("memory", "byte", "exact", "bf16", (one,))
        >>> seen = Sensitivity(("a",), np.ones(1), np.ones((1, 1)), np.ones((1, 1)))
        >>> plan = solve(gains, seen, tau=0.1)
        >>> plan.formats["a"], plan.gain, round(plan.nrmse, 4)
        ('fp8_e4m3', 8.0, 0.051)
    """
    check_knobs(tau, gain_fraction)
    if sensitivity.loss_ms == 0:
        message = "the loss of every sample is 0, so a normalized RMSE has no meaning"
        raise InputError(message)
    options = [_options(group, gains.base, sensitivity.total) for group in gains.groups]
    largest = math.fsum(max(gain for _, gain, _ in group) for group in options)
    if gain_fraction is None:
        choice = _most_gain(options, float(tau or 0.0) ** 2 * sensitivity.loss_ms)
    else:
        choice = _least_loss(options, gain_fraction * largest)
    picked = [group[p] for group, p in zip(options, choice.picks, strict=True)]
    nrmse = math.sqrt(math.fsum(d for _, _, d in picked) / sensitivity.loss_ms)
    if tau is not None and gain_fraction is not None and nrmse > tau:
        message = (
            f"no plan gains {gain_fraction:.3g} of the largest gain within tau {tau:.6g}; "
            f"the least tau that allows it is {nrmse:.6g}"
        )
        raise InfeasibleError(message)
    return _plan(gains, picked, choice, tau, sensitivity.loss_ms, largest)


Option = tuple[tuple[str, ...], float, float]  # configuration, gain, predicted loss MSE


def _plan(
    gains: Gains,
    picked: Sequence[Option],
    choice: Choice,
    tau: float | None,
    loss_ms: float,
    largest: float,
) -> Plan:
    loss_mse = math.fsum(d for _, _, d in picked)
    gain = math.fsum(g for _, g, _ in picked)
    nrmse = math.sqrt(loss_mse / loss_ms)
    return Plan(
        objective=gains.objective,
        unit=gains.unit,
        source=gains.source,
        base=gains.base,
        tau=nrmse if tau is None else tau,
        budget=loss_mse if tau is None else tau**2 * loss_ms,
        loss_mse=loss_mse,
        nrmse=nrmse,
        gain=gain,
        largest_gain=largest,
        binds=gain < largest,
        status=choice.status.value,
        gap=choice.gap,
        seconds=choice.seconds,
        formats={
            op: format
            for group, (configuration, _, _) in zip(gains.groups, picked, strict=True)
            for op, format in zip(group.ops, configuration, strict=True)
        },
    )


def check_knobs(tau: float | None, gain_fraction: float | None) -> None:
    """Refuse thresholds that no plan could be made for.

    Raises:
        InputError: both are missing, or one is out of range.
    """
    if tau is None and gain_fraction is None:
        message = "give tau (the threshold of the normalized RMSE) or gain_fraction (the wanted gain)"
        raise InputError(message)
    if tau is not None and not (math.isfinite(tau) and tau > 0):
        message = f"tau is {tau}; it must be a number above 0, such as 0.01"
        raise InputError(message)
    if gain_fraction is not None and not 0 < gain_fraction <= 1:
        message = f"gain_fraction is {gain_fraction}; it must be above 0 and at most 1"
        raise InputError(message)


def _options(group: GroupGains, base: str, sensitivity: dict[str, float]) -> list[Option]:
    """Configurations whose loss can be predicted, with gain and loss MSE."""
    options = []
    for configuration, gain in zip(group.configurations, group.gain, strict=True):
        lowered = [(op, f) for op, f in zip(group.ops, configuration, strict=True) if f != base]
        if all(op in sensitivity for op, _ in lowered):
            loss_mse = math.fsum(alpha(f) * sensitivity[op] for op, f in lowered)
            options.append((configuration, gain, loss_mse))
    return options


def _most_gain(options: Sequence[Sequence[Option]], budget: float) -> Choice:
    return choose([[Candidate(g, d) for _, g, d in group] for group in options], budget)


def _least_loss(options: Sequence[Sequence[Option]], wanted_gain: float) -> Choice:
    # The same knapsack with the roles changed: the value is the loss saved, the cost the gain lost.
    candidates = [[Candidate(-d, -g) for _, g, d in group] for group in options]
    return choose(candidates, -wanted_gain)
