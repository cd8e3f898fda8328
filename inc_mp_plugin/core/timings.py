"""Times of configurations, measured on a device, as values that can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inc_mp_plugin.core.literals import Objective, TimedDevice, Yardstick

OVER_BUDGET = "the time budget was over"


@dataclass(frozen=True, slots=True)
class TimedConfiguration:
    """One choice of formats, measured against the all-base model in turns.

    `formats` names the ops that leave the base format. `gain_s` is the price of the base less that of
    the configuration, `stderr_s` its standard error. `pairs`, `base_s` and `low_s` are, of each pass of
    the request, the pairs measured and their medians; `compile_s` is what the first call took beyond them. A
    `failure` is why there are no numbers: an error, or OVER_BUDGET.
    """

    formats: Mapping[str, str]
    gain_s: float = 0.0
    stderr_s: float = 0.0
    pairs: tuple[int, ...] = ()
    base_s: tuple[float, ...] = ()
    low_s: tuple[float, ...] = ()
    compile_s: float = 0.0
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """All configurations that were measured, on one device, for one request.

    `passes` maps the passes of the request ("ttft", "tpot") to how often each runs; their medians in
    the base format are `base_s`.
    """

    device: TimedDevice
    description: str
    passes: Mapping[str, int]
    base_s: tuple[float, ...]
    configurations: tuple[TimedConfiguration, ...]

    @property
    def price_s(self) -> float:
        """Time of the whole request in the base format, in s: the sum over its passes."""
        return sum(times * s for times, s in zip(self.passes.values(), self.base_s, strict=True))


@dataclass(frozen=True, slots=True)
class TimedPlan:
    """A whole plan: its gain as the sum of its groups' gains, and as measured end to end.

    `tau` is its threshold, that of the KL divergence where the yardstick is "kl".
    """

    objective: Objective
    tau: float
    quantized: tuple[str, ...]
    predicted_s: float
    predicted_stderr_s: float
    measured_s: float
    measured_stderr_s: float
    yardstick: Yardstick = "loss"

    @property
    def difference_s(self) -> float:
        """Measured less predicted gain, in s."""
        return self.measured_s - self.predicted_s

    @property
    def stderr_s(self) -> float:
        """Standard error of the difference, in s."""
        return float((self.predicted_stderr_s**2 + self.measured_stderr_s**2) ** 0.5)

    @property
    def additive(self) -> bool:
        """True if both gains agree within 5 % of the prediction or two standard errors."""
        return abs(self.difference_s) <= max(0.05 * abs(self.predicted_s), 2 * self.stderr_s)


@dataclass(frozen=True, slots=True)
class TimedGroup:
    """One configuration of a group beside two cheaper guesses at its gain (figure 1 of the paper).

    `sum_of_ops_s` adds up the gains of its ops measured alone; `macs` counts those of its lowered ops.
    """

    quantized: tuple[str, ...]
    measured_s: float
    stderr_s: float
    sum_of_ops_s: float
    macs: int


@dataclass(frozen=True, slots=True)
class TimeValidation:
    """Test of how well times add up: whole plans over groups, and single ops inside a group."""

    device: TimedDevice
    description: str
    price_s: float
    plans: tuple[TimedPlan, ...]
    groups: tuple[TimedGroup, ...]
