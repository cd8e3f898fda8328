"""Results that are shown of plans: measured losses, whole curves, and the steps of a closed loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from inc_mp_plugin.core.literals import Objective, Source, Unit
from inc_mp_plugin.core.plan import Interval

VERIFY_CONFIDENCE = 0.95  # of the interval of a measured loss
LEAST_SAMPLES = 8  # that are measured: fewer do not say how far their mean may be off
HELD, UNDECIDED, EXCEEDED = "held", "not decided", "exceeded"


def verdict(interval: Interval | None, tau: float) -> str:
    """Judge a threshold by the interval of a measured NRMSE.

    Example:
        >>> verdict(Interval(0.7, 0.9), 1.0), verdict(Interval(0.9, 1.1), 1.0), verdict(None, 1.0)
        ('held', 'not decided', 'not decided')
    """
    if interval is None or interval.low <= tau < interval.high:
        return UNDECIDED
    return HELD if interval.high <= tau else EXCEEDED


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured normalized RMSE, and its interval if there are enough samples for one."""

    nrmse: float
    interval: Interval | None


@dataclass(frozen=True, slots=True)
class Point:
    """One set of quantized ops: its loss MSE as predicted and as measured, each with an interval.

    `interval` is that of the mean of as many samples as were measured, by the prediction;
    `measured_interval` is that of the expectation, by the measurement.
    """

    quantized: tuple[str, ...]
    predicted: float
    interval: Interval
    measured: float
    measured_interval: Interval | None = None

    @property
    def covered(self) -> bool:
        """True if the measured value lies in the interval."""
        return self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, slots=True)
class Validation:
    """Measured loss MSE of a plan and of random plans, on held-out samples.

    `loss_ms` is E[g^2] of those samples, `nrmse` the plan's measured sqrt(loss MSE / E[g^2]), with
    `nrmse_interval`; `verify_confidence` is the level of all measured intervals. `log_correlation` is
    Pearson's, of log predicted and log measured over the random plans `points`, and `ratio` their mean
    predicted over their mean measured loss MSE.
    """

    samples: int
    loss_ms: float
    tau: float
    nrmse: float
    plan: Point
    points: tuple[Point, ...]
    log_correlation: float
    ratio: float
    nrmse_interval: Interval | None = None
    verify_confidence: float = VERIFY_CONFIDENCE

    @property
    def verdict(self) -> str:
        """The verdict on the plan's measured NRMSE and tau, as far as the samples can tell."""
        return verdict(self.nrmse_interval, self.tau)

    @property
    def covered(self) -> int:
        """Number of random plans whose measured value lies in the interval."""
        return sum(point.covered for point in self.points)


@dataclass(frozen=True, slots=True)
class Curve:
    """Gain against predicted loss MSE of one strategy, by rising gain.

    Point k lowers `ops[k]` ops; `low` and `high` are the ends of its loss MSE's confidence interval.
    `seed` tells random draws apart.
    """

    strategy: str
    seed: int
    ops: tuple[int, ...]
    gain: tuple[float, ...]
    loss_mse: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def least_loss(self, gain: float) -> float | None:
        """Find the least loss MSE of the points that gain at least this much; None if none does.

        Example:
            >>> curve = Curve("prefix", 0, (0, 1), (0.0, 2.0), (0.0, 0.5), (0.0, 0.4), (0.0, 0.6))
            >>> curve.least_loss(1.0), curve.least_loss(3.0)
            (0.5, None)
        """
        reached = [loss for g, loss in zip(self.gain, self.loss_mse, strict=True) if g >= gain]
        return min(reached, default=None)


@dataclass(frozen=True, slots=True)
class Frontier:
    """Curves of every strategy for one objective; `knee` is a point of the first, the exact one."""

    objective: Objective
    unit: Unit
    source: Source
    loss_ms: float
    largest_gain: float
    curves: tuple[Curve, ...]
    knee: int

    def nrmse(self, loss_mse: float) -> float:
        """Return the normalized RMSE of a loss MSE."""
        return float((loss_mse / self.loss_ms) ** 0.5)


@dataclass(frozen=True, slots=True)
class Round:
    """One plan of a closed loop: correction of the loss budget, predicted, and measured with its interval."""

    correction: float
    predicted_nrmse: float
    measured_nrmse: float
    gain: float
    ops: int
    interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Verification:
    """A closed loop: every plan that was measured on held-out samples, and the one that was chosen.

    `verify_confidence` is the level of the rounds' intervals.
    """

    tau: float
    samples: int
    rounds: tuple[Round, ...]
    chosen: int
    verify_confidence: float = VERIFY_CONFIDENCE

    @property
    def correction(self) -> float:
        """Correction of the loss budget that gives the chosen plan."""
        return self.rounds[self.chosen].correction


@dataclass(frozen=True, slots=True)
class Trial:
    """One plan of an experiment.

    `level` is what it was asked for: a fraction of the largest gain, or of the NRMSE of everything in
    the lower format. `seed` tells draws (of `random`, and of perturbed scales) apart. `measured` is its
    loss MSE on held-out samples, with `measured_interval`, `scores` what tasks gave, {"task/metric": value}.
    """

    strategy: str
    seed: int
    level: float
    gain: float
    quantized: tuple[str, ...]
    predicted: float
    interval: Interval
    measured: float | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    measured_interval: Interval | None = None


@dataclass(frozen=True, slots=True)
class Experiment:
    """Plans of several strategies for one objective, measured as `name` says.

    `loss_ms` is E[g^2] of the held-out samples, `base_scores` are those of the model in its base format,
    `ops` all ops that could be lowered, in graph order.
    """

    name: str
    objective: Objective
    unit: Unit
    source: Source
    largest_gain: float
    samples: int
    loss_ms: float
    ops: tuple[str, ...]
    trials: tuple[Trial, ...]
    base_scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stability:
    """Plans made from other draws of the same number of samples.

    `changed` maps ops to the fraction of draws in which their format was another; `gain_low` and
    `gain_high` are the ends of the draws' gains.
    """

    draws: int
    changed: Mapping[str, float]
    gain: float
    gain_low: float
    gain_high: float

    @property
    def doubtful(self) -> tuple[str, ...]:
        """Ops whose format was another in more than a fifth of the draws, the most doubtful first."""
        often = [op for op, fraction in self.changed.items() if fraction > 0.2]
        return tuple(sorted(often, key=lambda op: (-self.changed[op], op)))
