"""Exact search close to the relaxed optimum of a multiple-choice knapsack.

Why not branch and bound alone: groups of equal gain (the layers of one model) leave a solver with
countless near-ties to refute one by one; on 505 groups HiGHS needs seconds, and at some budgets more
than a minute. The idea of a core is Pisinger's (Minimal algorithms for knapsack problems, 1995).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FIRST_GAP = 1e-6  # values are about 1; doubled until the optimum lies within
_MOST_STATES = 200_000
_MOST_REFUSED = 1_000  # choices that seem to fit, and do not
_ROUNDING = 1e-12


class GaveUpError(Exception):
    """It would need too much memory, or rounding errors hide the answer; another solver must answer."""


class OutOfTimeError(Exception):
    """The time was over before the search was."""


@dataclass(frozen=True, slots=True)
class Knapsack:
    """A multiple-choice knapsack in pure numbers: candidates by group, each group's first one all zeros.

    `values` are about 1 at most; so is `slack`, what the costs of a choice may add up to, as a rounded
    number.
    """

    values: tuple[Floats, ...]
    costs: tuple[Floats, ...]
    slack: float

    def value(self, picks: Sequence[int]) -> float:
        """Total value of a choice."""
        return float(sum(v[p] for v, p in zip(self.values, picks, strict=True)))


@dataclass(frozen=True, slots=True)
class _Group:
    """Alternatives of a group: what they fall short of its relaxed pick, and what they cost more."""

    index: int
    candidates: tuple[int, ...]
    shortfall: Floats
    cost: Floats


@dataclass(frozen=True, slots=True)
class _Relaxed:
    """The best choice at a price of the cost; `slack` is what it leaves, below 0 if it does not fit."""

    picks: tuple[int, ...]
    slack: float
    price: float


def search(
    knapsack: Knapsack, price: float, fits: Callable[[tuple[int, ...]], bool], deadline: float
) -> tuple[int, ...]:
    """Find the choice of largest value that fits.

    With a price on the cost, candidate p of group j falls short of the best of its group by
    ``r_jp = max_q (v_jq - price c_jq) - (v_jp - price c_jp) >= 0``, and for every choice::

        value = bound - gap,    gap = sum_j r_j + price (slack - cost)

    so the optimum is the choice of least gap among those that fit. Choices up to a gap limit are
    enumerated, and the limit doubles until one of them fits, which is then the optimum. Any price >= 0
    gives the right answer; that of the relaxed problem gives it fast.

    Args:
        knapsack: whose first candidates together fit.
        price: value per cost.
        fits: decides exactly; the costs here are only good for telling apart what differs by more than
            their rounding errors. They are exact where all are whole multiples of a number.
        deadline: as `time.perf_counter` counts.

    Raises:
        GaveUpError: more than 200,000 partial choices are left at some point, or a thousand that seem to
            fit do not.
        OutOfTimeError: the deadline has passed.
    """
    priced = [v - price * c for v, c in zip(knapsack.values, knapsack.costs, strict=True)]
    shortfalls = [p.max() - p for p in priced]
    picks = tuple(int(r.argmin()) for r in shortfalls)
    spent = float(sum(c[p] for c, p in zip(knapsack.costs, picks, strict=True)))
    relaxed = _Relaxed(picks, knapsack.slack - spent, price)
    others = [np.delete(np.arange(len(r)), pick) for r, pick in zip(shortfalls, picks, strict=True)]
    nearest = [float(r[some].min(initial=np.inf)) for r, some in zip(shortfalls, others, strict=True)]
    limit, refused = _FIRST_GAP, set[tuple[int, ...]]()
    farthest = sum(float(r.max()) for r in shortfalls) + price * knapsack.slack
    while True:
        groups = []
        for j in (j for j, least in enumerate(nearest) if least <= limit):
            near, cost = others[j][shortfalls[j][others[j]] <= limit], knapsack.costs[j]
            groups.append(_Group(j, tuple(near.tolist()), shortfalls[j][near], cost[near] - cost[picks[j]]))
        for changes in _enumerate(groups, relaxed, limit, deadline):
            choice = tuple(changes.get(j, pick) for j, pick in enumerate(picks))
            if choice not in refused and fits(choice):
                return choice
            refused.add(choice)
            if len(refused) > _MOST_REFUSED:
                raise GaveUpError
        if limit > farthest:
            raise GaveUpError
        limit *= 2.0


def _enumerate(
    groups: list[_Group], relaxed: _Relaxed, limit: float, deadline: float
) -> Iterator[dict[int, int]]:
    """Changes to the relaxed picks, {group: candidate}, by rising gap up to the limit.

    A state is a choice in the groups so far: its shortfall and the cost it has added.
    """
    slack, price = relaxed.slack, relaxed.price
    # Costly groups first: what comes later can then correct less, and more states are dropped.
    groups = sorted(groups, key=lambda g: -float(np.abs(g.cost).max()))
    least = _sums_from_the_end([min(0.0, float(g.cost.min())) for g in groups])
    most = _sums_from_the_end([max(0.0, float(g.cost.max())) for g in groups])
    short, cost = np.zeros(1), np.zeros(1)
    trail = []
    for group, low, high in zip(groups, least, most, strict=True):
        if time.perf_counter() > deadline:
            raise OutOfTimeError
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
            raise GaveUpError
        trail.append((group, kept, parents))
    gap = np.where(cost <= slack + _ROUNDING, short + price * (slack - cost), np.inf)
    for state in np.argsort(gap, kind="stable").tolist():
        if gap[state] > limit:
            return
        changes: dict[int, int] = {}
        for group, kept, parents in reversed(trail):
            move, state = divmod(int(kept[state]), parents)
            if move:
                changes[group.index] = group.candidates[move - 1]
        yield changes


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
