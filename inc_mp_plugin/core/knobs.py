"""The thresholds that a plan is held to: their names, and the one set of rules."""

from __future__ import annotations

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.numbers import is_number

KNOBS = ("tau", "gain_fraction", "budget")

_LARGEST = 1e100  # of tau, whose square must be a number, too


def check_knobs(tau: float | None, gain_fraction: float | None, budget: float | None = None) -> None:
    """Refuse thresholds that no plan could be made for.

    Args:
        tau: threshold of the normalized RMSE, above 0; None if not given.
        gain_fraction: wanted fraction of the largest gain, above 0 and at most 1; None if not given.
        budget: fraction of what everything costs in the base format that a plan may cost, above 0 and at
            most 1; None if not given.

    Raises:
        InputError: all are missing, one is out of range, or two say how much is to be gained.
    """
    if tau is None and gain_fraction is None and budget is None:
        message = (
            "give tau (the threshold of the normalized RMSE), gain_fraction (the wanted gain) or budget "
            "(of cost: what a plan may cost)"
        )
        raise InputError(message)
    if tau is not None and not (is_number(tau) and 0 < tau <= _LARGEST):
        message = f"tau is {tau!r}; it must be a number above 0 and at most {_LARGEST:g}, such as 0.01"
        raise InputError(message)
    for name, value in (("gain_fraction", gain_fraction), ("budget", budget)):
        if value is not None and not (is_number(value) and 0 < value <= 1):
            message = f"{name} is {value!r}; it must be a number above 0 and at most 1"
            raise InputError(message)
    if gain_fraction is not None and budget is not None:
        message = f"gain_fraction {gain_fraction:g} and budget {budget:g} say the same thing twice; give one"
        raise InputError(message)
