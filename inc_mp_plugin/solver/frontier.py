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
from inc_mp_plugin.solver.ties import constrained_program
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
    """Draw the curve of `ip_mse`, exact at each point, and those of `prefix` and of `random` draws.

    The points of `ip_mse` are asked for in equal steps of gain, from none to the largest there is. Each
    point is the least loss MSE that gains as much. Points that come out the same are merged. A point is
    dropped if another point has more gain at no more loss.

    Args:
        gains: of one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`.
        points: number of points asked for, at least 2: both ends.
        draws: number of random orders, at least 0; the seeds are 0, 1, ...
        level: of the confidence intervals, between 0 and 1.
        demands: of the consumers of the plans, as in `solve`.

    Raises:
        InputError: there are fewer points or draws than that, or no op can leave the base format.
    """
    if points < 2 or draws < 0:
        message = f"points is {points} and draws is {draws}; give at least 2 points and 0 draws"
        raise InputError(message)
    program = constrained_program(gains, sensitivity, demands)
    gains, losses = program.gains, program.losses
    formats: dict[tuple[float, float], dict[str, str]] = {}
    for step in range(points):
        target = max(Fraction(step, points - 1) * program.most - gains.tolerance, Fraction(0))
        picks = least_loss(program, target).picks
        gain, loss_mse = program.totals(picks)
        formats[gain, losses.with_drift(loss_mse)] = program.formats(picks)
    best = [(g, d) for g, d in sorted(formats) if all(d < other for more, other in formats if more > g)]
    samples = [sample_losses_mse(losses, formats[point], gains.base) for point in best]
    interval = loss_interval(np.stack(samples, axis=1), level, losses.drift)
    exact = Curve(
        IP_MSE,
        0,
        tuple(sum(name != gains.base for name in formats[point].values()) for point in best),
        tuple(gain for gain, _ in best),
        tuple(loss_mse for _, loss_mse in best),
        tuple(np.asarray(interval.low).tolist()),
        tuple(np.asarray(interval.high).tolist()),
    )
    others = [baseline_curve(program, PREFIX, 0, level)]
    others += [baseline_curve(program, RANDOM, seed, level) for seed in range(draws)]
    return Frontier(
        gains.objective,
        gains.unit,
        gains.source,
        losses.loss_ms,
        program.largest,
        (exact, *others),
        knee(exact.gain, exact.loss_mse),
    )


def knee(gain: Sequence[float], loss_mse: Sequence[float]) -> int:
    """Find the point from which on more gain costs more than on average; return its index.

    This is the point farthest above the line between both ends, with the normalized RMSE as the other axis
    and both axes scaled to 1 (Satopaa et al., Finding a kneedle in a haystack, 2011).

    Example:
        >>> knee([0.0, 8.0, 10.0], [0.0, 0.01, 1.0])
        1
    """
    if gain[-1] <= 0 or loss_mse[-1] <= 0:
        return len(gain) - 1
    above = [g / gain[-1] - math.sqrt(d / loss_mse[-1]) for g, d in zip(gain, loss_mse, strict=True)]
    return max(range(len(above)), key=above.__getitem__)
