"""Intervals of measured losses, from few samples whose squared changes have heavy tails."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.results import LEAST_SAMPLES
from inc_mp_plugin.core.verdicts import Measured

if TYPE_CHECKING:
    from inc_mp_plugin.core.divergence import Divergence
    from inc_mp_plugin.core.sensitivity import FloatArray

_DRAWS = 2000


def mean_ratio_interval(parts: FloatArray, wholes: FloatArray, level: float) -> Interval | None:
    """Estimate an interval of E[a] / E[b] from samples (a_i, b_i): a studentized bootstrap of its logarithm.

    With r = mean a / mean b and the influence of sample i, l_i = a_i / mean a - b_i / mean b, the
    standard error of log r is s = sd(l) / sqrt(n). Each of 2,000 draws of n samples with replacement gives
    t = (log r* - log r) / s*. The interval is r exp(-t s) at the quantiles (1 +- level) / 2 of t
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 12). The draws are always the same.

    Squared changes of a loss are skewed: a set of samples without large changes has both a small mean and a
    small spread. So the upper end of the plain bootstrap is too low, and t is needed.

    Args:
        parts: a_i, not negative, shape (samples,).
        wholes: b_i, positive in the mean, shape (samples,).
        level: of both ends together, between 0 and 1.

    Returns:
        The interval; None where there are too few samples, or too few samples other than 0.

    Example:
        >>> lower, upper = mean_ratio_interval(np.arange(20.0), np.ones(20), 0.95)
        >>> bool(lower < 9.5 < upper)
        True
    """
    count = len(parts)
    if count < LEAST_SAMPLES:
        return None
    if not parts.any():
        return Interval(0.0, 0.0)
    a, b = parts / parts.mean(), wholes / wholes.mean()
    error = float(np.std(a - b, ddof=1)) / count**0.5
    if error < 1e-9:  # all samples alike
        return Interval(*[float(parts.mean() / wholes.mean())] * 2)
    ratio, spread = _ratio_and_spread(_draw_shares(count), a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        # A draw of equal samples has no spread and says nothing; a draw of zeros alone is as low as can be.
        t = np.where(ratio > 0, np.log(ratio) * (count - 1) ** 0.5 / spread, -np.inf)
        lower, upper = np.quantile(t[~np.isnan(t)], [(1 - level) / 2, (1 + level) / 2])
    ends = np.exp([-upper * error, -lower * error]) * parts.mean() / wholes.mean()
    return Interval(float(ends[0]), float(ends[1])) if np.isfinite(ends).all() else None


def measured_values(
    losses: FloatArray, base: FloatArray, level: float, divergence: Divergence | None = None
) -> Measured:
    """Compute the measured normalized RMSE sqrt(mean (g^ - g)^2 / mean g^2) (eq. 5) and the mean KL.

    Both with their intervals, over samples.

    Args:
        losses: g^ of each held-out sample, shape (samples,), in nats for a language model.
        base: g of the same samples, in the same unit.
        level: of the intervals.
        divergence: of the same samples, if it was measured.
    """
    changes, squares = (losses - base) ** 2, base**2
    ends = mean_ratio_interval(changes, squares, level)
    interval = None if ends is None else Interval(ends.low**0.5, ends.high**0.5)
    nrmse = float((changes.mean() / squares.mean()) ** 0.5)
    if divergence is None:
        return Measured(nrmse, interval)
    return Measured(nrmse, interval, divergence.mean, kl_interval(divergence, level))


def kl_interval(divergence: Divergence, level: float) -> Interval | None:
    """Estimate the interval of the mean KL divergence per position, nats: `mean_ratio_interval` over samples.

    Args:
        divergence: as measured.
        level: of the interval.
    """
    return mean_ratio_interval(divergence.kl, divergence.positions, level)


def mean_interval(values: FloatArray, level: float) -> Interval:
    """Estimate the interval of a mean that may have any sign, by the normal distribution of means.

    Args:
        values: of independent samples, shape (samples,).
        level: of the interval, between 0 and 1.

    Example:
        >>> mean_interval(np.array([1.0, 3.0] * 50), 0.95)
        Interval(low=1.8030..., high=2.1969...)
    """
    if len(values) < 2:
        return Interval(-np.inf, np.inf)
    error = float(np.std(values, ddof=1)) / len(values) ** 0.5
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return Interval(float(values.mean()) - reach, float(values.mean()) + reach)


def _ratio_and_spread(draws: FloatArray, a: FloatArray, b: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Compute mean a / mean b of each draw, and the spread of the influences on its logarithm."""
    mean_a, mean_b = draws @ a, draws @ b
    with np.errstate(divide="ignore", invalid="ignore"):
        variance = (
            draws @ a**2 / mean_a**2 + draws @ b**2 / mean_b**2 - 2.0 * (draws @ (a * b)) / (mean_a * mean_b)
        )
        # Equal samples leave a variance of rounding errors.
        spread = np.where(variance > 1e-12, np.sqrt(np.maximum(variance, 0.0)), np.nan)
        return mean_a / mean_b, spread


@lru_cache(maxsize=4)
def _draw_shares(samples: int) -> FloatArray:
    """Draw samples with replacement; return the share of each sample in each draw, shape (draws, samples)."""
    return np.random.default_rng(0).multinomial(samples, [1.0 / samples] * samples, _DRAWS) / samples
