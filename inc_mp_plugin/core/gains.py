"""Gains of the configurations of groups: values of one objective."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from inc_mp_plugin.core.literals import Objective, Source, Unit

_TOLERANCE = Fraction(1, 10**9)  # of the largest gain


@dataclass(frozen=True, slots=True)
class GroupGains:
    """Gains of every configuration of one group against the base format.

    `configurations` holds one format per op of `ops`; the first is all base, with gain 0.
    `measured_on` are the ops of the group that the gains were measured on, where that is another one
    of the same structure; `note` says what is missing and why.
    """

    ops: tuple[str, ...]
    configurations: tuple[tuple[str, ...], ...]
    gain: tuple[float, ...]
    stderr: tuple[float, ...]
    measured_on: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, slots=True)
class Gains:
    """The gains of one objective.

    `unit` is "s", "byte" or "bit operation", `source` measured, modelled or exact; `cost` is what everything
    costs in the base format, in that unit: a plan costs as much less as it gains.
    """

    objective: Objective
    unit: Unit
    source: Source
    base: str
    groups: tuple[GroupGains, ...]
    cost: float | None = None

    @property
    def largest(self) -> float:
        """The largest total gain of any plan, in `unit`, whatever its loss."""
        return sum(max(group.gain) for group in self.groups)

    @property
    def tolerance(self) -> Fraction:
        """The shortfall of a wanted gain that is as good, in its unit: nothing where gains are exact.

        Elsewhere a billionth of the largest gain, far above what rounding errors make of a sum, and far
        below what is known of a time.
        """
        return Fraction(0) if self.source == "exact" else _TOLERANCE * Fraction(self.largest)

    def total(self, formats: Mapping[str, str]) -> tuple[float, float] | None:
        """Add the gains of the groups up (eq. 7), with the standard error of the sum.

        Groups that share one measurement share its error too, so their errors add up as they are; those
        of different measurements add up in squares.

        Args:
            formats: of every op; an op that is missing is in the base format.

        Returns:
            Gain and standard error; None if a configuration among them has no gain here.

        Example:
            >>> twice = ((("bf16",), ("fp8_e4m3",)), (0.0, 3.0), (0.0, 0.5))
            >>> groups = (GroupGains(("a",), *twice), GroupGains(("b",), *twice, ("a",)))
            >>> gains = Gains("empirical_time", "s", "measured", "bf16", groups)
            >>> gains.total({"a": "fp8_e4m3", "b": "fp8_e4m3"})
            (6.0, 1.0)
        """
        gain: list[float] = []
        errors: dict[tuple[tuple[str, ...], tuple[str, ...]], float] = {}
        for group in self.groups:
            configuration = tuple(formats.get(op, self.base) for op in group.ops)
            if configuration not in group.configurations:
                return None
            place = group.configurations.index(configuration)
            gain.append(group.gain[place])
            measured = (group.measured_on or group.ops, configuration)
            errors[measured] = errors.get(measured, 0.0) + group.stderr[place]
        return math.fsum(gain), math.hypot(*errors.values())
