"""Gain against loss: the exact curve of the program, and those of the baselines beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.results import Curve, Frontier
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import PREFIX, RANDOM, baseline_curve
from inc_mp_plugin.solver.planner import IP_MSE, least_loss
from inc_mp_plugin.solver.ties import demanded_program
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, loss_interval, sample_losses_mse


def frontier(
    gains: Gains,
    sensitivity: Sensitivity | LossModel,
    *,
    points: int = 20,
    draws: int = 10,
    level: float = DEFAULT_CONFIDENCE,
    demands: Demands = NO_DEMANDS,
) -> Frontier:
    """The curve of `ip_mse`, exact at each point, and those of `prefix` and of `random` draws.

    The points of `ip_mse` want equal steps of gain, from none to the largest there is; each is the
    least loss MSE that gains as much. Points that come out the same are merged, those that another
    one beats in gain at no more loss are dropped.

    Args:
        gains: of one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        points: at least 2: both ends.
        draws: of `random`; seeds 0, 1, ...
        level: of the confidence intervals.
        demands: what the consumers of the plans can run, as in `solve`.

    Raises:
        InputError: fewer points or draws than that, or no op can leave the base format.
    """
    if points < 2 or draws < 0:
        message = f"points is {points} and draws is {draws}; give at least 2 points and 0 draws"
        raise InputError(message)
    one = demanded_program(gains, sensitivity, demands)
    gains, losses = one.gains, one.losses
    found: dict[tuple[float, float], dict[str, str]] = {}
    for step in range(points):
        wanted = max(Fraction(step, points - 1) * one.most - gains.tolerance, Fraction(0))
        picks = least_loss(one, wanted).picks
        picked = [group[pick] for group, pick in zip(one.groups, picks, strict=True)]
        loss_mse = losses.with_drift(math.fsum(option.loss_mse for option in picked))
        found[math.fsum(option.gain for option in picked), loss_mse] = one.formats(picks)
    kept = _undominated(sorted(found))
    samples = [sample_losses_mse(losses, found[key], gains.base) for key in kept]
    low, high = loss_interval(np.stack(samples, axis=1), level, losses.drift)
    exact = Curve(
        IP_MSE,
        0,
        tuple(sum(format_name != gains.base for format_name in found[key].values()) for key in kept),
        tuple(gain for gain, _ in kept),
        tuple(loss_mse for _, loss_mse in kept),
        tuple(np.asarray(low).tolist()),
        tuple(np.asarray(high).tolist()),
    )
    others = [baseline_curve(one, PREFIX, 0, level)]
    others += [baseline_curve(one, RANDOM, seed, level) for seed in range(draws)]
    return Frontier(
        gains.objective,
        gains.unit,
        gains.source,
        losses.loss_ms,
        one.largest,
        (exact, *others),
        knee(exact.gain, exact.loss_mse),
    )


def knee(gain: Sequence[float], loss_mse: Sequence[float]) -> int:
    """Where more gain begins to cost more than it did on average.

    The point farthest above the line between both ends, with the normalized RMSE as the other axis and
    both axes scaled to 1 (Satopaa et al., Finding a kneedle in a haystack, 2011).

    Example:
        >>> knee([0.0, 8.0, 10.0], [0.0, 0.01, 1.0])
        1
    """
    if gain[-1] <= 0 or loss_mse[-1] <= 0:
        return len(gain) - 1
    above = [g / gain[-1] - math.sqrt(d / loss_mse[-1]) for g, d in zip(gain, loss_mse, strict=True)]
    return max(range(len(above)), key=above.__getitem__)


def _undominated(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of (gain, loss) by rising gain, those that none of more gain matches in loss."""
    kept: list[tuple[float, float]] = []
    for gain, loss_mse in reversed(points):
        if not kept or loss_mse < kept[-1][1]:
            kept.append((gain, loss_mse))
    return kept[::-1]
