"""One forward pass on a device: the clock, the warm-up, and pairs of base format and configuration."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.literals import TimedDevice

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.gain.devices import Device

Formats = Mapping[str, str]

# What a configuration that cannot run raises: torch, INC and torchao use these three.
FAILURES = (RuntimeError, ValueError, TypeError)
LEAST_PAIRS = 3


def _nothing() -> None:
    """Prepare a pass that needs no preparation."""


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass of a request: `times` is how often it counts; `prepare` comes before, untimed."""

    name: str
    times: int
    run: Callable[[], object]
    prepare: Callable[[], object] = _nothing


@dataclass(frozen=True, slots=True)
class TimingSettings:
    """Device to measure on, and how long to measure.

    Every pass of every configuration first gets `repeats` pairs. Where the standard error is then above its
    share of `precision`, the pass gets more pairs, up to `most_repeats`. `precision` is relative to the
    largest sum of the measured gains; for a whole plan, to the plan's own gain. After `budget_s` seconds no
    measurement starts, and the first pairs are made fewer if need be. A warm-up ends when two calls in a row
    agree with the call before within the fraction `stable`, or after `most_warmups` calls, three times as
    many in the base format. `device` is "cpu", "cuda" or "hpu"; `every_group` measures groups of the same
    structure one by one.
    """

    repeats: int = 15
    most_repeats: int = 300
    precision: float = 0.02
    budget_s: float | None = None
    stable: float = 0.03
    most_warmups: int = 10
    device: TimedDevice = "cpu"
    every_group: bool = False


class Bench:
    """A device and the model on it, ready to be timed."""

    def __init__(self, device: Device, select: Callable[[Formats], None], settings: TimingSettings) -> None:
        """Time on `device`; `select` puts these ops into these formats, all others into the base."""
        self._device, self._select, self._settings = device, select, settings

    def base_s(self, forward: Pass) -> float:
        """Warm a pass up in the base format; return its median time.

        Raises:
            InputError: the pass cannot run.
        """
        try:
            self._select({})
            self._warm_up(forward, 3 * self._settings.most_warmups)
            return float(np.median([self._run(forward) for _ in range(LEAST_PAIRS)]))
        except FAILURES as error:
            message = (
                f"the model cannot run in its base format on {self._device.description}: {one_line(error)}"
            )
            raise InputError(message) from error

    def pairs(self, forward: Pass, formats: Formats, count: int) -> FloatArray:
        """Measure a pass in a configuration and in the base in turns.

        Args:
            forward: the pass.
            formats: the configuration, as the formats of the ops that leave the base format.
            count: how many pairs to measure.

        Returns:
            Seconds of shape (count, 3): the base (mean of both neighbours), the configuration, and the
            first call of its warm-up, which compiles.
        """
        self._select(formats)
        first = self._warm_up(forward, self._settings.most_warmups)
        rows = []
        with _no_garbage_collection():
            self._select({})
            before = self._run(forward)
            for _ in range(count):
                self._select(formats)
                lowered = self._run(forward)
                self._select({})
                after = self._run(forward)
                rows.append([(before + after) / 2, lowered, first])
                before = after
        return np.array(rows)

    def _warm_up(self, forward: Pass, most: int) -> float:
        """Run until two calls agree with the one before; return the time of the first call."""
        seconds = [self._run(forward), self._run(forward)]
        agreeing = 0
        while agreeing < 2 and len(seconds) < most:
            seconds.append(self._run(forward))
            close = abs(seconds[-1] - seconds[-2]) <= self._settings.stable * seconds[-2]
            agreeing = agreeing + 1 if close else 0
        return seconds[0]

    def _run(self, forward: Pass) -> float:
        forward.prepare()
        seconds = self._device.seconds(forward.run)
        if not math.isfinite(seconds):
            message = f"{self._device.description} reports a time that is not a number: {seconds}"
            raise NonFiniteError(message)
        return seconds


def one_line(error: Exception) -> str:
    """Return the start of an error's type and text, on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:160]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
