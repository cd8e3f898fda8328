"""What the experiment finds, as frozen values and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from training import Trial


@dataclass(frozen=True, slots=True)
class Mix:
    """A plan of a method for a budget, and how it does; `cost` and `budget` are fractions of all 4 bits.

    `draw` tells the random plans of one budget apart.
    """

    method: str
    draw: int
    budget: float
    cost: float
    lowered: tuple[str, ...]
    trial: Trial


@dataclass(frozen=True, slots=True)
class Sum:
    """A random mix after the brief fine-tuning: what its ops lose alone, added up, and what it loses.

    In cross entropy, and in the share of images told right; both of the training images.
    """

    lowered: tuple[str, ...]
    predicted_loss: float
    actual_loss: float
    predicted_accuracy: float
    actual_accuracy: float


@dataclass(frozen=True, slots=True)
class SeedOutcome:
    """Everything of one seed.

    `everything` has all ops in the lower format, by how their steps started; `prices` are
    {method: {op: what lowering it costs}}, `seconds` what pricing took, `trained` counts the mixes.
    """

    seed: int
    ops: tuple[str, ...]
    full_precision: Trial
    base: Trial
    mixes: tuple[Mix, ...]
    sums: tuple[Sum, ...]
    everything: Mapping[str, Trial]
    prices: Mapping[str, Mapping[str, float]]
    seconds: Mapping[str, float]
    trained: int

    def correlation(self, of: str = "loss") -> float:
        """Pearson correlation of predicted and actual "loss" or "accuracy" lost by random mixes."""
        predicted = [getattr(one, f"predicted_{of}") for one in self.sums]
        return statistics.correlation(predicted, [getattr(one, f"actual_{of}") for one in self.sums])


@dataclass(frozen=True, slots=True)
class Outcome:
    """All seeds."""

    seeds: tuple[SeedOutcome, ...]
    budgets: tuple[float, ...]

    def cost(self, method: str, budget: float) -> float:
        """Compute that the plans of a method for a budget really need, a fraction of all ops in 4 bits."""
        mixes = [mix for one in self.seeds for mix in one.mixes]
        return statistics.fmean(m.cost for m in mixes if (m.method, m.budget) == (method, budget))

    def by_seed(self, method: str, budget: float, of: Callable[[SeedOutcome, Trial], float]) -> list[float]:
        """A number of the trials of a method at a budget, one per seed: the mean over its draws."""
        return [
            statistics.fmean(of(one, m.trial) for m in one.mixes if (m.method, m.budget) == (method, budget))
            for one in self.seeds
        ]


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 of a single value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def to_json(one: SeedOutcome) -> dict[str, Any]:
    """As JSON."""
    return asdict(one)


def from_json(content: Mapping[str, Any]) -> SeedOutcome:
    """From JSON."""
    return SeedOutcome(
        content["seed"],
        tuple(content["ops"]),
        Trial(**content["full_precision"]),
        Trial(**content["base"]),
        tuple(
            Mix(**{**m, "lowered": tuple(m["lowered"]), "trial": Trial(**m["trial"])})
            for m in content["mixes"]
        ),
        tuple(Sum(**{**s, "lowered": tuple(s["lowered"])}) for s in content["sums"]),
        {steps: Trial(**trial) for steps, trial in content["everything"].items()},
        content["prices"],
        content["seconds"],
        content["trained"],
    )
