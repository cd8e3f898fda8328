"""Pace of long work, with its counts and times in words for people."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

_LONG_S = 600.0  # longer work is announced


@dataclass(frozen=True, slots=True)
class Work:
    """Steps to be made: `total` of them, of which `done` were made earlier; with `at_most` it may be fewer.

    `shorter` tells how to make it shorter.
    """

    description: str
    total: int
    done: int = 0
    noun: str = "step"
    at_most: bool = False
    shorter: str = ""

    @property
    def start(self) -> str:
        """The line at the start."""
        missing, most = self.total - self.done, "at most " if self.at_most else ""
        before = f", {self.done} of {self.total} were made before" if self.done else ""
        return f"{self.description}: {most}{counted(missing, self.noun)}{before}"


@dataclass(frozen=True, slots=True)
class Pace:
    """Work under way: steps made by now, when it began, and when the last of them ended."""

    work: Work
    began_s: float
    last_s: float
    made: int = 0

    def stepped(self, now_s: float) -> Pace:
        """Return the pace after one more step."""
        return replace(self, made=self.made + 1, last_s=now_s)

    def left_s(self, now_s: float) -> float | None:
        """Estimate the time left, in s, by the mean of the steps made; None where that says nothing.

        A step that takes longer than the mean holds the time where it is, and the last one, for which
        there is no time left then, has none to show.
        """
        missing = self.work.total - self.work.done - self.made
        if not self.made or missing <= 0:
            return None
        step_s = (self.last_s - self.began_s) / self.made
        left = max(step_s * missing - (now_s - self.last_s), step_s * (missing - 1))
        return left or None

    def words(self, now_s: float) -> str:
        """Write the steps done, their total, and the time left: `12 of 64, 3 min left`."""
        work, done = self.work, self.work.done + self.made
        count = f"{done} of {work.total}"
        if work.at_most:
            count = f"{work.noun} {min(done + 1, work.total)} of at most {work.total}"
        left = self.left_s(now_s)
        if left is None:
            return f"{count} after {duration(int(now_s - self.began_s))}"
        return f"{count}, {'at most ' if work.at_most else ''}{duration(math.ceil(left))} left"

    def line(self, now_s: float) -> str:
        """Write the description of the work, then `words`."""
        return f"{self.work.description}: {self.words(now_s)}"

    @property
    def announcement(self) -> str:
        """The line after a first step: the time that all will take, and how to make it shorter.

        Empty where that time is not long, and after any other step.
        """
        missing = self.work.total - self.work.done
        whole_s = (self.last_s - self.began_s) / max(self.made, 1) * missing
        if self.made != 1 or whole_s <= _LONG_S:
            return ""
        most = "at most " if self.work.at_most else ""
        shorter = f"; {self.work.shorter}" if self.work.shorter else ""
        long = f"{counted(missing, self.work.noun)}, about {duration(whole_s)}"
        return f"{self.work.description}: {most}{long} in all{shorter}"

    def end(self, now_s: float) -> str:
        """Write the line at the end."""
        made = counted(self.made, self.work.noun)
        return f"{self.work.description}: {made} in {duration(now_s - self.began_s)}"


def counted(number: int, noun: str) -> str:
    """Write a number of things, such as plans.

    Example:
        >>> counted(1, "plan"), counted(8, "batch")
        ('1 plan', '8 batches')
    """
    ending = "es" if noun.endswith(("s", "h")) else "s"
    return f"{number} {noun}{'' if number == 1 else ending}"


def duration(seconds: float) -> str:
    """Write a time, in s, as a person says it.

    Example:
        >>> duration(0.42), duration(80), duration(190), duration(12300)
        ('0.4 s', '80 s', '3 min', '3 h 25 min')
    """
    minutes = round(seconds / 60)
    if seconds < 1.95 and seconds % 1:
        return f"{seconds:.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"
