"""The plans of the points of a curve, in few numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PlansAlong:
    """The plans of the points of a curve; neighbours differ in few ops.

    `formats` names the formats, the base first. `changes` holds for each op points and numbers of formats in
    turn: the op has the format from its point on, up to the next. Before the first, and without an entry, it
    is in the base format.

    Example:
        >>> along = PlansAlong.of([{"a": "bf16"}, {"a": "fp8_e4m3"}, {"a": "bf16"}], "bf16")
        >>> along.changes
        {'a': (1, 1, 2, 0)}
    """

    formats: tuple[str, ...]
    changes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(plans: Sequence[Mapping[str, str]], base: str) -> PlansAlong:
        """Find where the formats of ops change.

        Args:
            plans: formats of all ops, point by point.
            base: the base format.
        """
        lower = sorted({name for plan in plans for name in plan.values()} - {base})
        formats = (base, *lower)
        changes: dict[str, tuple[int, ...]] = {}
        now: dict[str, str] = {}
        for point, plan in enumerate(plans):
            for op, name in plan.items():
                if name != now.get(op, base):
                    changes[op] = (*changes.get(op, ()), point, formats.index(name))
                    now[op] = name
        return PlansAlong(formats, changes)

    def steps(self, op: str) -> tuple[tuple[int, str], ...]:
        """Return the points from which an op has another format, each with the format."""
        numbers = self.changes.get(op, ())
        return tuple((p, self.formats[f]) for p, f in zip(numbers[::2], numbers[1::2], strict=True))

    def lowered(self, point: int) -> dict[str, str]:
        """Return the formats of the ops that the plan of a point lowers."""
        at = {op: self.formats[0] for op in self.changes}
        for op in at:
            for start, name in self.steps(op):
                if start <= point:
                    at[op] = name
        return {op: name for op, name in at.items() if name != self.formats[0]}
