"""How far a predicted loss MSE may be off, and whether other samples would have given another plan."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray

DEFAULT_CONFIDENCE = 0.95
_DRAWS = 2000


def sample_losses_mse(losses: LossModel, formats: Mapping[str, str], base: str) -> FloatArray:
    """Predict the squared loss change of each sample with these formats, and by an FP8 KV cache.

    Returns shape (samples,).

    Args:
        losses: prices of the ops.
        formats: of the ops; one that is missing, or in the base format, adds nothing.
        base: the base format.
    """
    total = np.array(losses.cache_loss_mse)
    for format_name in set(formats.values()) - {base}:
        columns = [i for i, op in enumerate(losses.ops) if formats.get(op) == format_name]
        total += losses.sample_loss_mse(format_name)[:, columns].sum(axis=1)
    return total


def loss_interval(
    samples: FloatArray,
    level: float = DEFAULT_CONFIDENCE,
    drift: Drift = NO_DRIFT,
    measured: int | None = None,
) -> Interval:
    """Interval that holds the loss MSE of fresh samples with a given probability.

    A bootstrap over samples. With d_i the predicted squared loss change of sample i and d their mean,
    each of 2,000 draws takes n samples i_1 ... i_n with replacement. The loss change of each is a sum
    over many rounding errors, so normal with variance d_i, around what the mean of the loss drifts by::

        mean_n (sqrt(d_(i_n)) e_n + k d)^2,    e_n ~ N(0, 1),    k ~ N(drift, its standard error)

    The interval lies between the quantiles (1 - level) / 2 and (1 + level) / 2; the draws are always
    the same ones.

    Args:
        samples: d_i, shape (samples,) or (samples, plans).
        level: between 0 and 1.
        drift: see `LossModel`.
        measured: n, the number of fresh samples; as many as those predicted if None.

    Returns:
        The ends, each of shape () or (plans,).

    Raises:
        InputError: the level is not between 0 and 1.
    """
    check_confidence(level)
    drawn = _drawn(samples.shape[0], measured or samples.shape[0])
    shift = np.multiply.outer(drift.value + drift.stderr * drawn.drift, samples.mean(axis=0))
    changes = drawn.squared @ samples + 2.0 * shift * (drawn.linear @ np.sqrt(samples)) + shift**2
    ordered = np.sort(changes, axis=0)
    low, high = _quantile(ordered, (1 - level) / 2), _quantile(ordered, (1 + level) / 2)
    return Interval(low, high) if samples.ndim > 1 else Interval(float(low), float(high))


def _quantile(ordered: FloatArray, share: float) -> Any:
    """Linear between the two draws beside it; `np.quantile` does the same, and loads numpy.ma for it."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def check_confidence(level: float) -> None:
    """Refuse a level that is no probability.

    Raises:
        InputError: it is not between 0 and 1.
    """
    if not 0 < level < 1:
        message = f"confidence is {level}; it must lie between 0 and 1, such as 0.95"
        raise InputError(message)


def resampled(losses: LossModel, seed: int) -> LossModel:
    """Draw as many samples with replacement."""
    samples = len(losses.loss)
    return losses.take(np.random.default_rng(seed).integers(0, samples, samples))


class _Drawn(NamedTuple):
    """What each sample weighs in each draw: with e_n^2 and with e_n, shape (draws, samples)."""

    squared: FloatArray
    linear: FloatArray
    drift: FloatArray  # standard normal, shape (draws,)


@lru_cache(maxsize=4)
def _drawn(samples: int, measured: int) -> _Drawn:
    generator = np.random.default_rng(0)
    taken = generator.integers(0, samples, (_DRAWS, measured))
    errors = generator.standard_normal((_DRAWS, measured))
    squared, linear = np.zeros((2, _DRAWS, samples))
    rows = np.arange(_DRAWS)[:, None]
    np.add.at(squared, (rows, taken), errors**2 / measured)
    np.add.at(linear, (rows, taken), errors / measured)
    return _Drawn(squared, linear, generator.standard_normal(_DRAWS))
