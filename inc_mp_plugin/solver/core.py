"""Exact search close to the relaxed optimum of a multiple-choice knapsack.

Why not branch and bound alone: groups of equal gain (the layers of one model) leave a solver with
countless near-ties to refute one by one; on 505 groups HiGHS needs seconds, and at some budgets more
than a minute. The idea of a core is Pisinger's (Minimal algorithms for knapsack problems, 1995).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FIRST_GAP = 1e-6  # values are about 1; doubled until the optimum lies within
_MOST_STATES = 200_000
_ROUNDING = 1e-12


class TooManyStatesError(Exception):
    """The search would need too much memory; another solver must answer."""


@dataclass(frozen=True, slots=True)
class _Group:
    """Alternatives of a group: what they fall short of its relaxed pick, and what they cost more."""

    index: int
    candidates: tuple[int, ...]
    shortfall: Floats
    cost: Floats


def search(values: Sequence[Floats], costs: Sequence[Floats], price: float) -> tuple[int, ...]:
    """Find the choice of largest value whose cost is at most 1.

    With a price on the cost, candidate p of group j falls short of the best of its group by
    ``r_jp = max_q (v_jq - price c_jq) - (v_jp - price c_jp) >= 0``, and for every choice::

        value = bound - gap,    gap = sum_j r_j + price (1 - cost)

    so the optimum is the feasible choice of least gap. Choices up to a gap limit are enumerated, and
    the limit doubles until it holds one, which is then the optimum. Any price >= 0 gives the right
    answer; that of the relaxed problem gives it fast.

    Args:
        values: of each group, the values of its candidates; the largest about 1.
        costs: of each group, the costs of its candidates; the choice of least cost is feasible.
        price: value per cost.

    Raises:
        TooManyStatesError: more than 200,000 partial choices are left at some point.
    """
    priced = [v - price * c for v, c in zip(values, costs, strict=True)]
    shortfalls = [p.max() - p for p in priced]
    picks = [int(r.argmin()) for r in shortfalls]
    slack = 1.0 - float(sum(c[p] for c, p in zip(costs, picks, strict=True)))
    limit = _FIRST_GAP
    while True:
        groups = []
        for j, (r, c) in enumerate(zip(shortfalls, costs, strict=True)):
            near = [i for i in range(len(r)) if i != picks[j] and r[i] <= limit]
            if near:
                groups.append(_Group(j, tuple(near), r[near], c[near] - c[picks[j]]))
        changes = _enumerate(groups, slack, price, limit)
        if changes is not None:
            return tuple(changes.get(j, pick) for j, pick in enumerate(picks))
        limit *= 2.0


def _enumerate(groups: list[_Group], slack: float, price: float, limit: float) -> dict[int, int] | None:
    """Changes to the relaxed picks of least gap, {group: candidate}; None if no gap is in the limit.

    A state is a choice in the groups so far: its shortfall and the cost it has added.
    """
    # Costly groups first: what comes later can then correct less, and more states are dropped.
    groups = sorted(groups, key=lambda g: -float(np.abs(g.cost).max()))
    least = _sums_from_the_end([min(0.0, float(g.cost.min())) for g in groups])
    most = _sums_from_the_end([max(0.0, float(g.cost.max())) for g in groups])
    short, cost = np.zeros(1), np.zeros(1)
    trail = []
    for group, low, high in zip(groups, least, most, strict=True):
        moves = np.append(0.0, group.shortfall), np.append(0.0, group.cost)
        parents = len(short)
        short = (moves[0][:, None] + short).ravel()
        cost = (moves[1][:, None] + cost).ravel()
        kept = np.flatnonzero(
            (short <= limit)
            & (cost + low <= slack + _ROUNDING)
            & (short + price * (slack - cost - high) <= limit)
        )
        kept = kept[_undominated(cost[kept], price * cost[kept] - short[kept])]
        short, cost = short[kept], cost[kept]
        if len(kept) > _MOST_STATES:
            raise TooManyStatesError
        trail.append((group, kept, parents))
    gap = np.where(cost <= slack + _ROUNDING, short + price * (slack - cost), np.inf)
    if not len(gap) or gap.min() > limit:
        return None
    changes: dict[int, int] = {}
    state = int(gap.argmin())
    for group, kept, parents in reversed(trail):
        move, state = divmod(int(kept[state]), parents)
        if move:
            changes[group.index] = group.candidates[move - 1]
    return changes


def _undominated(cost: Floats, value: Floats) -> NDArray[np.intp]:
    """Indices of states that no other state of at most their cost matches in value."""
    order = np.lexsort((-value, cost))
    best_before = np.maximum.accumulate(np.append(-np.inf, value[order][:-1]))
    return order[value[order] > best_before]


def _sums_from_the_end(numbers: list[float]) -> list[float]:
    """For each position, the sum of what comes after it."""
    total, sums = 0.0, []
    for number in reversed(numbers):
        sums.append(total)
        total += number
    return sums[::-1]
