"""The thresholds that a plan is held to: their names, and the one set of rules."""

from __future__ import annotations

from collections.abc import Mapping

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.numbers import is_number

KNOBS = ("tau", "kl", "gain_fraction", "budget")
KEY_OF: Mapping[Yardstick, str] = {"loss": "tau", "kl": "kl"}  # of a threshold, by its yardstick

_LARGEST = 1e100  # of tau, whose square must be a number, too


def check_knobs(
    tau: float | None, gain_fraction: float | None, budget: float | None = None, kl: float | None = None
) -> None:
    """Refuse thresholds that no plan could be made for.

    Args:
        tau: threshold of the normalized RMSE, above 0; None if not given.
        gain_fraction: wanted fraction of the largest gain, above 0 and at most 1; None if not given.
        budget: fraction of what everything costs in the base format that a plan may cost, above 0 and at
            most 1; None if not given.
        kl: threshold of the KL divergence, nats per token, above 0; None if not given.

    Raises:
        InputError: all are missing, one is out of range, or two say how much is to be gained.
    """
    if tau is None and kl is None and gain_fraction is None and budget is None:
        message = (
            "give kl (the threshold of the KL divergence, nats per token), tau (of the normalized RMSE of "
            "the loss), gain_fraction (the wanted gain) or budget (of cost: what a plan may cost)"
        )
        raise InputError(message)
    for name, value, example in (("tau", tau, 0.01), ("kl", kl, 0.001)):
        if value is not None and not (is_number(value) and 0 < value <= _LARGEST):
            allowed = f"it must be a number above 0 and at most {_LARGEST:g}, such as {example}"
            message = f"{name} is {value!r}; {allowed}"
            raise InputError(message)
    for name, value in (("gain_fraction", gain_fraction), ("budget", budget)):
        if value is not None and not (is_number(value) and 0 < value <= 1):
            message = f"{name} is {value!r}; it must be a number above 0 and at most 1"
            raise InputError(message)
    if gain_fraction is not None and budget is not None:
        message = f"gain_fraction {gain_fraction:g} and budget {budget:g} say the same thing twice; give one"
        raise InputError(message)


def constraint_of(tau: float | None, kl: float | None, constraint: Yardstick | None = None) -> Yardstick:
    """Decide the yardstick that is least where a gain is given: the one asked for, or that of a threshold.

    Args:
        tau: threshold of the loss; None if not given.
        kl: threshold of the KL divergence; None if not given.
        constraint: the yardstick asked for, if any.

    Example:
        >>> constraint_of(0.01, None), constraint_of(None, None), constraint_of(0.01, 0.001)
        ('loss', 'kl', 'kl')
    """
    if constraint is not None:
        return constraint
    return "loss" if tau is not None and kl is None else "kl"
