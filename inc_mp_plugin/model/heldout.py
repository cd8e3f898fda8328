"""Held-out samples: those that plans are measured on, never those of the calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch


@dataclass(frozen=True)
class HeldOut:
    """Samples to measure plans on, loaded when they are first needed.

    Attributes:
        identify: returns what identifies the samples; it may have to read their file.
        samples: how many a plan is reported on; a closed loop reads as many that come after them.
        random_plans: how many plans are drawn to compare predictions with.
        seed: of the draws.
        load: returns the batches of as many samples, after a number of others.
    """

    identify: Callable[[], dict[str, Any]]
    samples: int
    random_plans: int
    seed: int
    load: Callable[[int], Sequence[Batch]]
