"""The uncertainty that comes from the samples: of a predicted loss MSE, and of a plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inc_mp_plugin.core.errors import InfeasibleError, InputError
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Interval, Plan
from inc_mp_plugin.core.results import Stability
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray

DEFAULT_CONFIDENCE = 0.95
_DRAWS = 2000


def sample_losses_mse(losses: LossModel, formats: Mapping[str, str], base: str) -> FloatArray:
    """Predict the squared loss change of each sample by these formats and by an FP8 KV cache.

    Returns shape (samples,).

    Args:
        losses: prices of the ops.
        formats: of the ops; an op that is missing, or in the base format, adds nothing.
        base: the base format.
    """
    total = np.array(losses.cache_loss_mse)
    for format_name in sorted(set(formats.values()) - {base}):  # sums of floats depend on the order
        columns = [i for i, op in enumerate(losses.ops) if formats.get(op) == format_name]
        total += losses.sample_loss_mse(format_name)[:, columns].sum(axis=1)
    return total


def loss_interval(
    samples: FloatArray,
    level: float = DEFAULT_CONFIDENCE,
    drift: Drift = NO_DRIFT,
    measured: int | None = None,
) -> Interval:
    """Find the interval that holds the loss MSE of fresh samples with a given probability.

    A bootstrap over samples: each of 2,000 draws takes n samples i_1 ... i_n with replacement. Let d_i be
    the predicted squared loss change of sample i, and d the mean of all d_i. The loss change of a sample is
    a sum over many rounding errors, so it is normal with variance d_i; its mean k d is the drift. The loss
    MSE of a draw is::

        mean_n (sqrt(d_(i_n)) e_n + k d)^2,    e_n ~ N(0, 1),    k ~ N(drift, standard error of the drift)

    The interval lies between the quantiles (1 - level) / 2 and (1 + level) / 2 of the draws. The draws are
    the same in every call.

    Args:
        samples: d_i, shape (samples,) or (samples, plans).
        level: probability, between 0 and 1.
        drift: mean and standard error of k, see `LossModel`.
        measured: n, the number of fresh samples; None stands for the number of predicted ones.

    Returns:
        The ends, each of shape () or (plans,).

    Raises:
        InputError: the level is not between 0 and 1.
    """
    check_confidence(level)
    draws = _draws(samples.shape[0], measured or samples.shape[0])
    shift = np.multiply.outer(drift.value + drift.stderr * draws.drift, samples.mean(axis=0))
    changes = draws.squared @ samples + 2.0 * shift * (draws.linear @ np.sqrt(samples)) + shift**2
    ordered = np.sort(changes, axis=0)
    interval = Interval(_quantile(ordered, (1 - level) / 2), _quantile(ordered, (1 + level) / 2))
    return interval if samples.ndim > 1 else Interval(*map(float, interval))


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


def resampled(losses: LossModel, seed: int) -> LossModel:
    """Draw samples with replacement, as many as there are."""
    samples = len(losses.loss)
    return losses.take(np.random.default_rng(seed).integers(0, samples, samples))


def stability(
    plan: Plan, losses: LossModel, solve_for: Callable[[LossModel], Plan], draws: int = 20
) -> Stability:
    """Plan again from samples drawn with replacement, as a bootstrap does, and compare.

    Args:
        plan: made from `losses`.
        losses: prices of the ops.
        solve_for: makes a plan from other samples, in the way in which `plan` was made.
        draws: number of draws. A draw is left out, and not counted, if no plan is within the threshold,
            because of the ops and the cache that must be lowered.
    """
    plans = []
    for seed in range(draws):
        try:
            plans.append(solve_for(resampled(losses, seed)))
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
