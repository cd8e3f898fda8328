"""The uncertainty that comes from the samples: of a predicted loss MSE or KL divergence, and of a plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import LEAST_SAMPLES, Stability
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift

if TYPE_CHECKING:
    from inc_mp_plugin.core.cost_model import CostModel
    from inc_mp_plugin.core.costs import Costs
    from inc_mp_plugin.core.literals import Estimator
    from inc_mp_plugin.core.sensitivity import FloatArray, Sensitivity

DEFAULT_CONFIDENCE = 0.95
LEAST_ROWS: Mapping[Estimator, int] = {"sample": LEAST_SAMPLES, "batch": 16}  # for an interval of KL
_DRAWS = 2000


def plan_rows(model: CostModel, formats: Mapping[str, str], base: str) -> FloatArray:
    """Predict the cost of formats and of an FP8 KV cache, row by row, shape (rows,).

    Args:
        model: prices of the ops: squared loss changes, or KL divergences per token.
        formats: of the ops; an op that is missing, or in the base format, adds nothing.
        base: the base format.
    """
    total = np.array(model.cache_row_costs)
    for format_name in sorted(set(formats.values()) - {base}):  # sums of floats depend on the order
        lowered = {op for op, name in formats.items() if name == format_name}
        total += model.plan_row_costs(format_name, lowered)
    return total


def plan_shift(losses: LossModel, formats: Mapping[str, str], base: str) -> Drift:
    """Predict the shift of the mean loss by formats and by an FP8 KV cache, and its standard error.

    Args:
        losses: prices of the ops.
        formats: as in `plan_rows`.
        base: the base format.
    """
    shifts = {name: losses.shifts(name) for name in set(formats.values()) - {base}}
    known = [shifts[name][op] for op, name in formats.items() if name != base and op in shifts[name]]
    value = math.fsum([losses.cache_shift, *known])
    drift = losses.drift
    return Drift(value, value / abs(drift.value) * drift.stderr if drift.value else 0.0)


def predicted_cost(model: LossModel | KLModel, formats: Mapping[str, str], base: str) -> float:
    """Predict the loss MSE or the KL divergence of formats.

    Args:
        model: prices of the ops.
        formats: as in `plan_rows`.
        base: the base format.
    """
    cost = float(plan_rows(model, formats, base).mean())
    return cost + plan_shift(model, formats, base).value ** 2 if isinstance(model, LossModel) else cost


def predict(
    model: LossModel | KLModel,
    formats: Mapping[str, str],
    base: str,
    *,
    level: float = DEFAULT_CONFIDENCE,
    measured: int | None = None,
) -> tuple[float, Interval | None]:
    """Predict the loss MSE or the KL divergence of formats, with an interval.

    Args:
        model: prices of the ops.
        formats: as in `plan_rows`.
        base: the base format.
        level: probability that the interval holds what is measured.
        measured: number of fresh samples; None stands for the number of predicted ones.
    """
    rows = plan_rows(model, formats, base)
    if isinstance(model, KLModel):
        interval = kl_interval(rows, model.sensitivity, level, measured)
        return float(rows.mean()), interval
    shift = plan_shift(model, formats, base)
    return float(rows.mean()) + shift.value**2, loss_interval(rows, level, shift, measured)


def curve_costs(
    model: CostModel, rows: FloatArray, shifts: FloatArray, level: float
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Predict the costs of several plans, with the ends of their intervals, each of shape (plans,).

    Args:
        model: of the loss MSE, or of the KL divergence.
        rows: from `plan_rows`, shape (rows, plans).
        shifts: of the mean loss, without the KV cache, shape (plans,).
        level: of the intervals.
    """
    means = rows.mean(axis=0)
    if not isinstance(model, LossModel):
        interval = kl_interval(rows, model.sensitivity, level) or Interval(means, means)
        return means, np.asarray(interval.low), np.asarray(interval.high)
    whole, drift = shifts + model.cache_shift, model.drift
    stderr = whole / abs(drift.value) * drift.stderr if drift.value else 0.0 * whole
    interval = loss_interval(rows, level, (whole, stderr))
    return means + whole**2, np.asarray(interval.low), np.asarray(interval.high)


def loss_interval(
    samples: FloatArray,
    level: float = DEFAULT_CONFIDENCE,
    shift: tuple[Any, Any] = NO_DRIFT,
    measured: int | None = None,
) -> Interval:
    """Find the interval that holds the loss MSE of fresh samples with a given probability.

    A bootstrap over samples: each of 2,000 draws takes n samples i_1 ... i_n with replacement. Let d_i be
    the predicted squared loss change of sample i. The loss change of a sample is a sum over many rounding
    errors, so it is normal with variance d_i; its mean is the shift s. The loss MSE of a draw is::

        mean_n (sqrt(d_(i_n)) e_n + s)^2,    e_n ~ N(0, 1),    s ~ N(shift, standard error of the shift)

    The interval lies between the quantiles (1 - level) / 2 and (1 + level) / 2 of the draws. The draws are
    the same in every call.

    Args:
        samples: d_i, shape (samples,) or (samples, plans).
        level: probability, between 0 and 1.
        shift: mean and standard error of s, numbers, or of shape (plans,).
        measured: n, the number of fresh samples; None stands for the number of predicted ones.

    Returns:
        The ends, each of shape () or (plans,).

    Raises:
        InputError: the level is not between 0 and 1.
    """
    check_confidence(level)
    draws = _draws(samples.shape[0], measured or samples.shape[0])
    value, stderr = (np.broadcast_to(part, samples.shape[1:]) for part in shift)
    shifts = value + np.multiply.outer(draws.drift, stderr)
    changes = draws.squared @ samples + 2.0 * shifts * (draws.linear @ np.sqrt(samples)) + shifts**2
    return _ends(np.sort(changes, axis=0), level)


def kl_interval(
    rows: FloatArray, sensitivity: Sensitivity, level: float, measured: int | None = None
) -> Interval | None:
    """Find the interval that holds the KL divergence of fresh samples with a given probability.

    A bootstrap of a ratio over rows, with their drawn labels: 2,000 times, the predicted KL of as many rows,
    drawn with replacement, times what as many rows as are measured deviate by. The draws are the same in
    every call.

    Args:
        rows: KL of each row over the mean number of tokens, shape (rows,) or (rows, plans).
        sensitivity: that the rows are of.
        level: probability, between 0 and 1.
        measured: number of fresh samples; None stands for the number of predicted ones.

    Returns:
        The ends, each of shape () or (plans,); None with fewer than 16 batches, or 8 samples.

    Raises:
        InputError: the level is not between 0 and 1.
    """
    check_confidence(level)
    count = len(rows)
    if count < LEAST_ROWS[sensitivity.rows]:
        return None
    tokens = np.ones(count) if sensitivity.tokens is None else sensitivity.tokens
    fresh = count if measured is None else max(1, round(measured * count / sensitivity.samples))
    relative = tokens / tokens.mean()
    means = []
    for shares in _shares(count, fresh):
        weights = (shares @ relative).reshape(-1, *[1] * (rows.ndim - 1))
        means.append(shares @ rows / weights)
    whole = np.where(rows.mean(axis=0) > 0, rows.mean(axis=0), 1.0)
    return _ends(np.sort(means[0] * means[1] / whole, axis=0), level)


def _ends(ordered: FloatArray, level: float) -> Interval:
    interval = Interval(_quantile(ordered, (1 - level) / 2), _quantile(ordered, (1 + level) / 2))
    return interval if ordered.ndim > 1 else Interval(*map(float, interval))


def _quantile(ordered: FloatArray, share: float) -> Any:
    """Find a quantile of sorted draws, linear between two draws; `np.quantile` would load numpy.ma."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def check_confidence(level: float) -> None:
    """Refuse a confidence level that is no probability.

    Raises:
        InputError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        message = f"confidence is {level}; it must lie between 0 and 1, such as 0.95"
        raise InputError(message)


def resampled(costs: Costs, seed: int) -> Costs:
    """Draw rows with replacement, as many as there are."""
    rows = len(costs.sensitivity.loss)
    return costs.take(np.random.default_rng(seed).integers(0, rows, rows))


def stability(plan: Plan, costs: Costs, solve_for: Callable[[Costs], Plan], draws: int = 20) -> Stability:
    """Plan again from samples drawn with replacement, as a bootstrap does, and compare.

    Args:
        plan: made from `costs`.
        costs: prices of the ops.
        solve_for: makes a plan from other samples, in the way in which `plan` was made.
        draws: number of draws. A draw is left out, and not counted, if no plan is within the threshold,
            because of the ops and the cache that must be lowered.
    """
    plans = []
    for seed in range(draws):
        try:
            plans.append(solve_for(resampled(costs, seed)))
        except InfeasibleError:
            continue
    counts = {
        op: sum(p.formats[op] != format_name for p in plans) for op, format_name in plan.formats.items()
    }
    changed = {op: count / len(plans) for op, count in counts.items() if count}
    gains = [p.gain for p in plans] or [plan.gain]
    return Stability(len(plans), changed, plan.gain, min(gains), max(gains))


class _Draws(NamedTuple):
    """Weights of the samples in each draw, by e_n^2 and by e_n, shape (draws, samples)."""

    squared: FloatArray
    linear: FloatArray
    drift: FloatArray  # standard normal, shape (draws,)


@lru_cache(maxsize=4)
def _draws(samples: int, measured: int) -> _Draws:
    generator = np.random.default_rng(0)
    picked = generator.integers(0, samples, (_DRAWS, measured))
    errors = generator.standard_normal((_DRAWS, measured))
    squared, linear = np.zeros((2, _DRAWS, samples))
    rows = np.arange(_DRAWS)[:, None]
    np.add.at(squared, (rows, picked), errors**2 / measured)
    np.add.at(linear, (rows, picked), errors / measured)
    return _Draws(squared, linear, generator.standard_normal(_DRAWS))


@lru_cache(maxsize=4)
def _shares(rows: int, fresh: int) -> tuple[FloatArray, FloatArray]:
    """Draw rows with replacement; return each row's share, shape (draws, rows), of two sets of draws.

    The first set has as many rows as there are, the second `fresh` ones.
    """
    generator = np.random.default_rng(1)
    first, second = (
        generator.multinomial(count, [1.0 / rows] * rows, _DRAWS) / count for count in (rows, fresh)
    )
    return first, second
