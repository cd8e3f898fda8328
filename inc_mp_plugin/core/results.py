"""Results that are shown of plans: measured losses, and the steps of a closed loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from inc_mp_plugin.core.literals import Per, Through
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.verdicts import UNDECIDED, Measured, Thresholds, verdict

VERIFY_CONFIDENCE = 0.95  # of the interval of a measured loss
LEAST_SAMPLES = 8  # that are measured: fewer do not say how far their mean may be off


@dataclass(frozen=True, slots=True)
class KLPoint:
    """KL divergence from the base model as predicted and as measured, nats per token, each with an interval.

    `predicted` is None where it was not priced. `flips` is the share of tokens whose most likely class is
    another one, `p99` the 99th percentile over tokens, `perplexity_ratio` that to the base model's. A
    classifier has one distribution `per` "sample" instead.
    """

    predicted: float | None
    interval: Interval | None
    measured: float
    measured_interval: Interval | None
    flips: float
    p99: float
    perplexity_ratio: float | None = None
    per: Per = "token"

    @property
    def covered(self) -> bool:
        """True if the measured value lies in the predicted interval."""
        return self.interval is not None and self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, slots=True)
class Point:
    """One set of quantized ops: its loss MSE as predicted and as measured, each with an interval.

    `interval` is that of the mean of as many samples as were measured, by the prediction;
    `measured_interval` is that of the expectation, by the measurement. A loss that was not priced has no
    prediction; `kl` is None where no KL divergence was measured.
    """

    quantized: tuple[str, ...]
    predicted: float | None
    interval: Interval | None
    measured: float
    measured_interval: Interval | None = None
    kl: KLPoint | None = None

    @property
    def covered(self) -> bool:
        """True if the measured value lies in the predicted interval."""
        return self.interval is not None and self.interval.low <= self.measured <= self.interval.high


@dataclass(frozen=True, slots=True)
class KLValidation:
    """Predictions of KL divergence over the random plans, in summary, and what the plan's is held to.

    `log_correlation` and `ratio` are as those of the loss MSE; None where KL was not priced. `threshold` is
    the plan's, `floor` the base model's KL from itself in another attention kernel, both in nats per token;
    None where there is none.
    """

    log_correlation: float | None
    ratio: float | None
    threshold: float | None = None
    floor: float | None = None


@dataclass(frozen=True, slots=True)
class Validation:
    """Measured loss MSE of a plan and of random plans, on held-out samples.

    `loss_ms` is E[g^2] of those samples, `nrmse` the plan's measured sqrt(loss MSE / E[g^2]), with
    `nrmse_interval`; `verify_confidence` is the level of all measured intervals. `log_correlation` is
    Pearson's, of log predicted and log measured over the random plans `points`, and `ratio` their mean
    predicted over their mean measured loss MSE; both are None where the loss was not priced. `kl` is None
    where no KL divergence was measured.

    `through` says what lowered the ops of the plan, `points_through` those of the random plans (None: the
    same); `attention`, `dtype` and `threads` how the model ran.
    """

    samples: int
    loss_ms: float
    tau: float | None
    nrmse: float
    plan: Point
    points: tuple[Point, ...]
    log_correlation: float | None
    ratio: float | None
    nrmse_interval: Interval | None = None
    verify_confidence: float = VERIFY_CONFIDENCE
    kl: KLValidation | None = None
    through: Through = "inc"
    attention: str | None = None
    dtype: str | None = None
    threads: int | None = None
    points_through: Through | None = None

    @property
    def verdict(self) -> str:
        """The verdict on the plan's measured NRMSE and tau, as far as the samples can tell."""
        return UNDECIDED if self.tau is None else verdict(self.nrmse_interval, self.tau)

    @property
    def kl_verdict(self) -> str:
        """The verdict on the plan's measured KL divergence and its threshold, beyond the floor."""
        if self.kl is None or self.kl.threshold is None or self.plan.kl is None:
            return UNDECIDED
        return verdict(self.plan.kl.measured_interval, self.kl.threshold, self.kl.floor or 0.0)

    @property
    def covered(self) -> int:
        """Number of random plans whose measured value lies in the interval."""
        return sum(point.covered for point in self.points)


@dataclass(frozen=True, slots=True)
class Round:
    """One plan of a closed loop: correction of its budgets, predicted, and measured with its intervals.

    What was not priced has no prediction, and a KL divergence, in nats per token, may not be measured.
    """

    correction: float
    predicted_nrmse: float | None
    measured_nrmse: float
    gain: float
    ops: int
    interval: Interval | None = None
    predicted_kl: float | None = None
    measured_kl: float | None = None
    kl_interval: Interval | None = None

    @property
    def measured(self) -> Measured:
        """The measured values."""
        return Measured(self.measured_nrmse, self.interval, self.measured_kl, self.kl_interval)


@dataclass(frozen=True, slots=True)
class Verification:
    """A closed loop: every plan that was measured on held-out samples, and the one that was chosen.

    `verify_confidence` is the level of the rounds' intervals; `kl` and `floor` are those of `Thresholds`;
    `through` says what lowered the ops.
    """

    tau: float | None
    samples: int
    rounds: tuple[Round, ...]
    chosen: int
    verify_confidence: float = VERIFY_CONFIDENCE
    kl: float | None = None
    floor: float = 0.0
    through: Through = "inc"

    @property
    def thresholds(self) -> Thresholds:
        """The thresholds that had to hold."""
        return Thresholds(self.tau, self.kl, self.floor)

    @property
    def correction(self) -> float:
        """Correction of the budgets that gives the chosen plan."""
        return self.rounds[self.chosen].correction


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
