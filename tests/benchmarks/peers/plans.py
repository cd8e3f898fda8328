"""Plans of equal memory, by one exact program for all scores; and how well scores foretell measured KL."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from task import Groups, Task, key, summed

from inc_mp_plugin.solver.milp import Candidate, choose

Plans = dict[str, frozenset[str]]  # {share of the memory: ops in FP8}


def plan(task: Task, groups: Groups, scores: Mapping[str, float], share: float) -> frozenset[str]:
    """Lower the groups of the least sum of scores that gain at least this share of the memory."""
    weights = {name: sum(task.elements[op] for op in ops) for name, ops in groups.items()}
    of_group = summed(groups, scores)
    kept_at_most = task.total - math.ceil(share * task.total)
    candidates = [[Candidate(0.0, weights[name]), Candidate(-of_group[name], 0.0)] for name in groups]
    picks = choose(candidates, kept_at_most).picks
    return frozenset(
        op for (_, ops), pick in zip(groups.items(), picks, strict=True) if pick == 1 for op in ops
    )


def all_plans(task: Task, groups: Groups, scores: Mapping[str, Mapping[str, float]]) -> dict[str, Plans]:
    """Make the plans of all scores, by the same program."""
    return {
        name: {key(share): plan(task, groups, values, share) for share in task.shares}
        for name, values in scores.items()
    }


def own_plans(grouping: str, peers: Mapping[str, Mapping[str, Any]]) -> dict[str, Plans]:
    """Collect the plans that the peers' own searches picked."""
    return {
        f"{name}, {title}": {share: frozenset(ops) for share, ops in of_shares.items()}
        for name, peer in peers.items()
        for title, of_shares in peer["plans"][grouping].items()
    }


def gained(task: Task, ops: frozenset[str]) -> float:
    """Compute the share of the memory that a plan gains."""
    return sum(task.elements[op] for op in ops) / task.total


def random_plans(ops: Sequence[str], count: int) -> list[frozenset[str]]:
    """Draw plans of all sizes."""
    draw = random.Random(1)
    plans = []
    for _ in range(count):
        share = draw.random()
        plans.append(frozenset(op for op in ops if draw.random() < share) or frozenset([draw.choice(ops)]))
    return plans


def rank_correlations(
    scores: Mapping[str, Mapping[str, float]], groups: Groups
) -> dict[str, dict[str, float]]:
    """Compute Spearman's correlation of every two scores of the groups."""
    columns = {name: list(summed(groups, values).values()) for name, values in scores.items()}
    return {a: {b: float(spearmanr(columns[a], columns[b]).statistic) for b in columns} for a in columns}


def foretold(
    scores: Mapping[str, float], plans: Sequence[frozenset[str]], measured: Sequence[float]
) -> dict[str, float] | None:
    """Compare the sum of scores of plans with their measured KL.

    Returns the correlation of the logarithms, and the spread (standard deviation) of log(sum / KL): what is
    left when the unit of the score is fitted to these very plans. None where a sum is not positive.
    """
    sums = np.array([sum(scores[op] for op in ops) for ops in plans])
    if (sums <= 0).any():
        return None
    x, y = np.log(sums), np.log(np.array(measured))
    return {"log_correlation": float(np.corrcoef(x, y)[0, 1]), "spread": float(np.std(x - y))}
