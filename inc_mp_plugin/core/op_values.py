"""Values of keeping ops in the base format, by methods that measure something else than a loss MSE."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

EAGL, ALPS = "eagl", "alps"
METHODS = (EAGL, ALPS)


@dataclass(frozen=True, slots=True)
class OpValues:
    """Value of keeping each op in the base format rather than in a lower one, {format: {op: value}}.

    The values of the ops that are kept add up (section 3.1 of arXiv 2301.13330), so a plan's is the sum
    over them, and the plan of the largest value within a budget is that of the least sum over the ops
    that are lowered. `unit` says what is counted: "bit" of entropy, "loss" or "accuracy".
    """

    method: str
    unit: str
    values: Mapping[str, Mapping[str, float]]
