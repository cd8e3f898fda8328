"""Exact search close to the relaxed optimum of a multiple-choice knapsack.

Why not branch and bound alone: groups of equal gain (the layers of one model) have countless near-ties,
which a solver must refute one by one. On 505 groups HiGHS needs seconds, and at some budgets more than a
minute. The search looks only near the relaxed optimum, at Pisinger's core (Minimal algorithms for knapsack
problems, 1995).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FIRST_GAP = 1e-6  # values are about 1; doubled until the optimum lies within
_MOST_STATES = 200_000
_MOST_REFUSED = 1_000  # choices that seem to fit, and do not
_ROUNDING = 1e-12


class GaveUpError(Exception):
    """End of the search without an answer, for memory or rounding errors; another solver must answer."""


class OutOfTimeError(Exception):
    """End of the search without an answer, because the deadline has passed."""


@dataclass(frozen=True, slots=True)
class Knapsack:
    """A multiple-choice knapsack in pure numbers: candidates by group, each group's first one all zeros.

    `values` are about 1 at most, and so is `slack`, the rounded limit on the sum of the costs of a choice.
    """

    values: tuple[Floats, ...]
    costs: tuple[Floats, ...]
    slack: float

    def value(self, picks: Sequence[int]) -> float:
        """Add up the values of a choice."""
        return float(sum(v[p] for v, p in zip(self.values, picks, strict=True)))


@dataclass(frozen=True, slots=True)
class _Group:
    """Alternatives to a group's relaxed pick: their shortfall in value, and their cost above that pick's."""

    index: int
    candidates: tuple[int, ...]
    shortfall: Floats
    cost: Floats


def search(
    knapsack: Knapsack, price: float, fits: Callable[[tuple[int, ...]], bool], deadline: float
) -> tuple[int, ...]:
    """Find the choice of largest value that fits.

    With a price on the cost, candidate p of group j falls short of the best of its group by
    ``r_jp = max_q (v_jq - price c_jq) - (v_jp - price c_jp) >= 0``, and for every choice::

        value = bound - gap,    gap = sum_j r_j + price (slack - cost)

    so the optimum is the choice of least gap among those that fit. Choices up to a limit of the gap are
    enumerated by rising gap, and the limit doubles until a choice fits. The first choice that fits is the
    optimum. Any price >= 0 gives the right answer; the price of the relaxed program gives it fast.

    Args:
        knapsack: whose first candidates together fit.
        price: value per cost.
        fits: decides exactly if a choice fits. The costs of the knapsack have rounding errors, unless all
            are whole multiples of a number, and tell choices apart only by more than these errors.
        deadline: in seconds, as `time.perf_counter` counts.

    Raises:
        GaveUpError: more than 200,000 partial choices are left at some point, or a thousand choices seem
            to fit and do not.
        OutOfTimeError: the deadline has passed.
    """
    priced = [v - price * c for v, c in zip(knapsack.values, knapsack.costs, strict=True)]
    shortfalls = [p.max() - p for p in priced]
    picks = tuple(int(r.argmin()) for r in shortfalls)
    spent = float(sum(c[p] for c, p in zip(knapsack.costs, picks, strict=True)))
    slack = knapsack.slack - spent  # below 0 if the picks do not fit
    others = [np.delete(np.arange(len(r)), pick) for r, pick in zip(shortfalls, picks, strict=True)]
    nearest = [float(r[rest].min(initial=np.inf)) for r, rest in zip(shortfalls, others, strict=True)]
    limit, refused = _FIRST_GAP, set[tuple[int, ...]]()
    farthest = sum(float(r.max()) for r in shortfalls) + price * knapsack.slack
    while True:
        groups = []
        for j in (j for j, least in enumerate(nearest) if least <= limit):
            near, cost = others[j][shortfalls[j][others[j]] <= limit], knapsack.costs[j]
            groups.append(_Group(j, tuple(near.tolist()), shortfalls[j][near], cost[near] - cost[picks[j]]))
        for changes in _enumerate(groups, slack, price, limit=limit, deadline=deadline):
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
    groups: list[_Group], slack: float, price: float, *, limit: float, deadline: float
) -> Iterator[dict[int, int]]:
    """Yield changes to the relaxed picks, {group: candidate}, by rising gap up to the limit.

    A state is a choice in the groups so far: the sums of its shortfalls and of its costs.
    """
    # Costly groups first: later groups can then correct less, and more states are dropped.
    groups = sorted(groups, key=lambda g: -float(np.abs(g.cost).max()))
    least_later = _sums_from_the_end([min(0.0, float(g.cost.min())) for g in groups])
    most_later = _sums_from_the_end([max(0.0, float(g.cost.max())) for g in groups])
    short, cost = np.zeros(1), np.zeros(1)
    trail = []
    for group, least, most in zip(groups, least_later, most_later, strict=True):
        if time.perf_counter() > deadline:
            raise OutOfTimeError
        parents = len(short)
        short = (np.append(0.0, group.shortfall)[:, None] + short).ravel()
        cost = (np.append(0.0, group.cost)[:, None] + cost).ravel()
        states = np.flatnonzero(
            (short <= limit)
            & (cost + least <= slack + _ROUNDING)
            & (short + price * (slack - cost - most) <= limit)
        )
        states = states[_undominated_states(cost[states], price * cost[states] - short[states])]
        short, cost = short[states], cost[states]
        if len(states) > _MOST_STATES:
            raise GaveUpError
        trail.append((group, states, parents))
    gap = np.where(cost <= slack + _ROUNDING, short + price * (slack - cost), np.inf)
    for state in np.argsort(gap, kind="stable").tolist():
        if gap[state] > limit:
            return
        changes: dict[int, int] = {}
        for group, states, parents in reversed(trail):
            move, state = divmod(int(states[state]), parents)
            if move:
                changes[group.index] = group.candidates[move - 1]
        yield changes


def _undominated_states(cost: Floats, value: Floats) -> NDArray[np.intp]:
    """List the states that no other state matches in value at the same cost or less."""
    order = np.lexsort((-value, cost))
    best_before = np.maximum.accumulate(np.append(-np.inf, value[order][:-1]))
    return order[value[order] > best_before]


def _sums_from_the_end(numbers: list[float]) -> list[float]:
    """Sum, for each position, the numbers that come after that position."""
    return list(accumulate(reversed(numbers), initial=0.0))[:-1][::-1]
