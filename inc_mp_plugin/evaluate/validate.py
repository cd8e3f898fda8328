"""Predicted against measured: the loss MSE of plans, on samples that calibration did not use."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE, Point, Validation
from inc_mp_plugin.evaluate.interval import mean_ratio_interval, measured_nrmse

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Interval
    from inc_mp_plugin.core.sensitivity import FloatArray

    MeasureLoss = Callable[[Collection[str]], FloatArray]


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


def validate(
    measure_loss: MeasureLoss,
    predict: Callable[[Collection[str]], tuple[float, Interval]],
    plan: Collection[str],
    tau: float,
    *,
    others: Iterable[Collection[str]],
    level: float = VERIFY_CONFIDENCE,
) -> Validation:
    """Measure the loss MSE of a plan and of other sets of ops.

    The measured loss MSE is mean_i (g^_i - g_i)^2 over held-out samples (eq. 4), with g^ the loss
    of the model in which exactly these ops are quantized.

    Args:
        measure_loss: runs the model with these ops quantized; returns the loss of each sample.
        predict: returns the predicted loss MSE of these ops (eq. 25), and its interval.
        plan: the ops that the plan quantizes.
        tau: the plan's threshold.
        others: sets of ops to compare with, none empty.
        level: of the intervals of measured values, between 0 and 1.

    Raises:
        InputError: there is no held-out sample.
        NonFiniteError: a loss is NaN or infinite.
    """
    base = measure_loss(())
    if not len(base):
        message = "no held-out sample was given; at least one is needed"
        raise InputError(message)

    def measure(ops: Collection[str]) -> FloatArray:
        losses = measure_loss(ops)
        if not np.isfinite(losses).all():
            message = f"the loss is NaN or infinite with {len(ops)} ops quantized"
            raise NonFiniteError(message)
        return losses

    def point(ops: Collection[str], losses: FloatArray) -> Point:
        changes = (losses - base) ** 2
        ends = mean_ratio_interval(changes, np.ones_like(changes), level)
        return Point(tuple(ops), *predict(ops), float(changes.mean()), ends)

    with_plan = measure(plan)
    points = tuple(point(ops, measure(ops)) for ops in others)
    measured = measured_nrmse(with_plan, base, level)
    return Validation(
        samples=len(base),
        loss_ms=float((base**2).mean()),
        tau=tau,
        nrmse=measured.nrmse,
        plan=point(plan, with_plan),
        points=points,
        log_correlation=_log_correlation(points),
        ratio=math.fsum(p.predicted for p in points) / math.fsum(p.measured for p in points),
        nrmse_interval=measured.interval,
        verify_confidence=level,
    )


def _log_correlation(points: Sequence[Point]) -> float:
    """Compute Pearson's correlation of log predicted and log measured loss MSE."""
    predicted, measured = np.log([[p.predicted, p.measured] for p in points]).T
    return float(np.corrcoef(predicted, measured)[0, 1])
