"""How the KL divergence is estimated from drawn labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import Estimator


@dataclass(frozen=True, slots=True)
class Estimate:
    """Settings of an estimate, which change its cost and its variance, not its expectation.

    `rows` tells whether weight gradients are squared sample by sample, or summed over a batch before:
    "batch" takes no more than an ordinary backward pass, and has the larger variance. `draws` is the number
    of labels drawn per position; all share the forward pass. `seed` is that of the labels.
    """

    rows: Estimator = "sample"
    draws: int = 1
    seed: int = 0

    def check(self) -> None:
        """Refuse settings that no estimate could be made with.

        Raises:
            InputError: an unknown estimator, or less than one draw.
        """
        if self.rows not in get_args(Estimator):
            raise InputError(unknown("estimator", self.rows, get_args(Estimator)))
        if not isinstance(self.draws, int) or self.draws < 1:
            message = f"draws is {self.draws!r}; give a whole number of drawn labels per position, at least 1"
            raise InputError(message)
