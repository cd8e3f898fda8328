"""Gain against loss: the exact curve of the program, and those of the baselines beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.frontier import Curve, Frontier
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.plans_along import PlansAlong
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.solver.baselines import baseline_curve
from inc_mp_plugin.solver.limits import Limits
from inc_mp_plugin.solver.optimum import least_cost
from inc_mp_plugin.solver.orders import ENDS, PRACTICE, PREFIX, RANDOM
from inc_mp_plugin.solver.planner import IP_MSE
from inc_mp_plugin.solver.program import Program
from inc_mp_plugin.solver.ties import constrained_program
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, curve_costs, plan_rows, predicted_cost


def frontier(
    gains: Gains,
    sensitivity: Sensitivity | CostModel | Costs,
    *,
    yardstick: Yardstick | None = None,
    points: int = 20,
    draws: int = 10,
    level: float = DEFAULT_CONFIDENCE,
    demands: Demands = NO_DEMANDS,
    graph: Graph | None = None,
) -> Frontier:
    """Draw the curve of `ip_mse`, exact at each point, and those of `prefix` and of `random` draws.

    With a graph, of a model with repeated layers, those of `ends` and the one point of `practice` are beside
    them (see `baseline`).

    The points of `ip_mse` are asked for in equal steps of gain, from none to the largest there is. Each
    point is the least loss MSE, or KL divergence, that gains as much. Points that come out the same are
    merged. A point is dropped if another point has more gain at no more loss.

    Args:
        gains: of one objective.
        sensitivity: from `measure_sensitivity`, priced by the paper's noise; or a `LossModel`, or `Costs`.
        yardstick: "loss" or "kl"; by default the loss, if it was measured.
        points: number of points asked for, at least 2: both ends.
        draws: number of random orders, at least 0; the seeds are 0, 1, ...
        level: of the confidence intervals, between 0 and 1.
        demands: of the consumers of the plans, as in `solve`.
        graph: of the model.

    Raises:
        InputError: there are fewer points or draws than that, or no op can leave the base format.
    """
    if points < 2 or draws < 0:
        message = f"points is {points} and draws is {draws}; give at least 2 points and 0 draws"
        raise InputError(message)
    program = constrained_program(gains, sensitivity, demands)
    gains, costs = program.gains, program.costs
    yardstick = yardstick or ("kl" if costs.loss is None else "loss")
    exact, plans = _exact_curve(program, yardstick, points, level)
    others = [baseline_curve(program, yardstick, PREFIX, 0, level=level)]
    others += [baseline_curve(program, yardstick, RANDOM, seed, level=level) for seed in range(draws)]
    if graph is not None and repeated_blocks(graph):
        others.append(baseline_curve(program, yardstick, ENDS, 0, level=level, graph=graph))
        others.append(baseline_curve(program, yardstick, PRACTICE, 0, level=level, graph=graph).last)
    return Frontier(
        gains.objective,
        gains.unit,
        gains.source,
        1.0 if costs.loss is None else costs.loss.loss_ms,
        program.largest,
        (exact, *others),
        knee(exact.gain, exact.loss_mse),
        yardstick,
        PlansAlong.of(plans, gains.base),
        _beside(costs, yardstick, plans, gains.base),
    )


def _exact_curve(
    program: Program, yardstick: Yardstick, points: int, level: float
) -> tuple[Curve, list[dict[str, str]]]:
    """Draw the curve of `ip_mse`; return the formats of its plans, too."""
    gains, model = program.gains, program.costs.by(yardstick)
    picks: dict[tuple[float, float], tuple[int, ...]] = {}
    for step in range(points):
        target = max(Fraction(step, points - 1) * program.most - gains.tolerance, Fraction(0))
        choice = least_cost(program, yardstick, target, Limits()).picks
        totals = program.totals(choice)
        picks[totals.gain, program.predicted(totals, yardstick)] = choice
    best = [(g, d) for g, d in sorted(picks) if all(d < other for more, other in picks if more > g)]
    formats = [program.formats(picks[point]) for point in best]
    rows = np.stack([plan_rows(model, chosen, gains.base) for chosen in formats], axis=1)
    shifts = np.array([program.totals(picks[point]).shift for point in best])
    costs, lower, upper = (tuple(part.tolist()) for part in curve_costs(model, rows, shifts, level))
    ops = tuple(sum(name != gains.base for name in chosen.values()) for chosen in formats)
    reached, needed = zip(*best, strict=True)
    return Curve(IP_MSE, 0, ops, reached, costs, lower, upper, needed), formats


def _beside(
    costs: Costs, yardstick: Yardstick, plans: Sequence[Mapping[str, str]], base: str
) -> tuple[float, ...]:
    """Predict what plans cost by the other yardstick; nothing where that was not measured."""
    other = costs.loss if yardstick == "kl" else costs.kl
    return () if other is None else tuple(predicted_cost(other, plan, base) for plan in plans)


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
