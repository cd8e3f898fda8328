"""Verdicts on thresholds, by the intervals of what was measured."""

from __future__ import annotations

from dataclasses import dataclass

from inc_mp_plugin.core.plan import Interval

HELD, UNDECIDED, EXCEEDED = "held", "not decided", "exceeded"


def verdict(interval: Interval | None, threshold: float, floor: float = 0.0) -> str:
    """Judge a threshold by the interval of a measured value.

    Args:
        interval: of the value; None where there is none.
        threshold: that the value is to stay within.
        floor: what two kernels that compute the same differ by: nothing is held closer to its threshold.

    Example:
        >>> verdict(Interval(0.7, 0.9), 1.0), verdict(Interval(0.9, 1.1), 1.0), verdict(None, 1.0)
        ('held', 'not decided', 'not decided')
        >>> verdict(Interval(0.7, 0.9), 1.0, floor=0.2)
        'not decided'
    """
    if interval is None:
        return UNDECIDED
    if interval.high + floor <= threshold:
        return HELD
    return EXCEEDED if interval.low > threshold else UNDECIDED


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured normalized RMSE and, if it was measured, KL divergence in nats per token.

    Each has an interval if there are enough samples for one.
    """

    nrmse: float
    interval: Interval | None
    kl: float | None = None
    kl_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Thresholds:
    """The thresholds that a plan was made for: of the normalized RMSE, and of the KL, nats per token.

    `floor` is the KL that two kernels differ by, which is no plan's doing.
    """

    tau: float | None
    kl: float | None = None
    floor: float = 0.0

    def verdict(self, measured: Measured) -> str:
        """Judge a plan: held if all thresholds are, exceeded if any is."""
        verdicts = set()
        if self.tau is not None:
            verdicts.add(verdict(measured.interval, self.tau))
        if self.kl is not None:
            verdicts.add(verdict(measured.kl_interval, self.kl, self.floor))
        if EXCEEDED in verdicts:
            return EXCEEDED
        return HELD if verdicts == {HELD} else UNDECIDED
