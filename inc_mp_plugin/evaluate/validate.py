"""Predicted against measured: loss MSE and KL of plans, on samples that calibration did not use."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE, KLPoint, KLValidation, Point, Validation
from inc_mp_plugin.evaluate.interval import kl_interval, mean_ratio_interval, measured_values

if TYPE_CHECKING:
    from inc_mp_plugin.core.divergence import Divergence
    from inc_mp_plugin.core.sensitivity import FloatArray

    MeasureLoss = Callable[[Collection[str]], FloatArray]
    Predict = Callable[[Collection[str]], tuple[float, Interval | None] | None]


def random_plans(ops: Sequence[str], count: int, seed: int) -> list[tuple[str, ...]]:
    """Draw sets of ops to quantize: first the number of ops, then the ops, both uniformly.

    Args:
        ops: to draw from.
        count: number of sets.
        seed: of the random numbers.

    Example:
        >>> len(random_plans(["a", "b", "c"], 2, seed=0))
        2
    """
    draw = random.Random(seed)
    plans = []
    for _ in range(count):
        drawn = set(draw.sample(list(ops), draw.randint(1, len(ops))))
        plans.append(tuple(op for op in ops if op in drawn))
    return plans


@dataclass(frozen=True)
class KLMeasurement:
    """The KL divergence of sets of ops: how it is measured, predicted, and judged.

    Attributes:
        measure: returns the measured divergence of some ops; None where the model has none.
        predict: returns the predicted KL, nats per token, and its interval; None where it was not priced.
        threshold: of the plan, nats per token; None if it has none.
        floor: measures the KL of the base model in its two attention kernels; None where there is but one.
        judge: as `measure`, for the plan that is validated; `measure` itself if None.
    """

    measure: Callable[[Collection[str]], Divergence | None]
    predict: Predict = lambda ops: None
    threshold: float | None = None
    floor: Callable[[], float | None] = lambda: None
    judge: Callable[[Collection[str]], Divergence | None] | None = None

    def point_of_plan(self, ops: Collection[str], level: float) -> KLPoint | None:
        """Do the same as `point` for the plan, as its judge measures it.

        Args:
            ops: that the plan quantizes.
            level: of the interval of the measured value.
        """
        return replace(self, measure=self.judge or self.measure).point(ops, level)

    def point(self, ops: Collection[str], level: float) -> KLPoint | None:
        """Measure and predict some ops; None where the model has no KL divergence.

        Args:
            ops: that are quantized; nothing is measured of none.
            level: of the interval of the measured value.
        """
        predicted, interval = self.predict(ops) or (None, None)
        if not ops:
            return KLPoint(predicted, interval, 0.0, Interval(0.0, 0.0), flips=0.0, p99=0.0)
        divergence = self.measure(ops)
        if divergence is None:
            return None
        return KLPoint(
            predicted=predicted,
            interval=interval,
            measured=divergence.mean,
            measured_interval=kl_interval(divergence, level),
            flips=divergence.flip_share,
            p99=divergence.p99,
            perplexity_ratio=divergence.perplexity_ratio,
            per=divergence.per,
        )

    def validation(self, points: Sequence[Point]) -> KLValidation | None:
        """Compare predicted with measured KL over random plans; None where a plan has none."""
        each = [point.kl for point in points]
        known = [point for point in each if point is not None]
        if len(known) < len(each):
            return None
        log_correlation, ratio = _agreement(known)
        return KLValidation(log_correlation, ratio, self.threshold, self.floor())


def validate(
    measure_loss: MeasureLoss,
    predict: Predict,
    plan: Collection[str],
    tau: float | None,
    *,
    others: Iterable[Collection[str]],
    level: float = VERIFY_CONFIDENCE,
    kl: KLMeasurement | None = None,
    judge: MeasureLoss | None = None,
) -> Validation:
    """Measure the loss MSE of a plan and of other sets of ops, and their KL divergence.

    The measured loss MSE is mean_i (g^_i - g_i)^2 over held-out samples (eq. 4), with g^ the loss
    of the model in which exactly these ops are quantized.

    Args:
        measure_loss: runs the model with these ops quantized; returns the loss of each sample.
        predict: returns the predicted loss MSE of these ops (eq. 25), and its interval; None where the loss
            was not priced.
        plan: the ops that the plan quantizes.
        tau: the plan's threshold; None if it has none.
        others: sets of ops to compare with, none empty.
        level: of the intervals of measured values, between 0 and 1.
        kl: measures KL divergences, too.
        judge: as `measure_loss`, for the plan; `measure_loss` itself if None.

    Raises:
        InputError: there is no held-out sample.
        NonFiniteError: a loss is NaN or infinite.
    """
    if not len(measure_loss(())):
        message = "no held-out sample was given; at least one is needed"
        raise InputError(message)

    def point(ops: Collection[str], meter: MeasureLoss, of_kl: KLPoint | None) -> Point:
        changes = (_finite(meter(ops), ops) - meter(())) ** 2
        ends = mean_ratio_interval(changes, np.ones_like(changes), level)
        predicted, interval = predict(ops) or (None, None)
        return Point(tuple(ops), predicted, interval, float(changes.mean()), ends, of_kl)

    judge = judge or measure_loss
    base, with_plan = judge(()), _finite(judge(plan), plan)
    points = tuple(point(ops, measure_loss, None if kl is None else kl.point(ops, level)) for ops in others)
    measured = measured_values(with_plan, base, level)
    of_kl = None if kl is None else kl.validation(points)
    of_plan = point(plan, judge, None if of_kl is None or kl is None else kl.point_of_plan(plan, level))
    log_correlation, ratio = _agreement(points)
    return Validation(
        samples=len(base),
        loss_ms=float((base**2).mean()),
        tau=tau,
        nrmse=measured.nrmse,
        plan=of_plan,
        points=points,
        log_correlation=log_correlation,
        ratio=ratio,
        nrmse_interval=measured.interval,
        verify_confidence=level,
        kl=of_kl,
    )


def _finite(losses: FloatArray, ops: Collection[str]) -> FloatArray:
    if not np.isfinite(losses).all():
        message = f"the loss is NaN or infinite with {len(ops)} ops quantized"
        raise NonFiniteError(message)
    return losses


def _agreement(points: Sequence[Point] | Sequence[KLPoint]) -> tuple[float, float] | tuple[None, None]:
    """Compute Pearson's correlation of log predicted and log measured, and mean predicted / mean measured."""
    pairs = [(point.predicted, point.measured) for point in points if point.predicted is not None]
    if not pairs:
        return None, None
    predicted, measured = np.log(pairs).T
    correlation = float(np.corrcoef(predicted, measured)[0, 1])
    return correlation, math.fsum(p for p, _ in pairs) / math.fsum(m for _, m in pairs)
