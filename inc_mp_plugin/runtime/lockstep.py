"""Processes that have to make their passes together, although each has as many as its samples need.

A model that is spread over processes runs in none of them alone: each pass gathers weights from all. So the
processes agree on every pass before it starts. One that has no such pass to make takes part in that of the
others by gathering the same weights, and computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import ranks

Turn = Literal["forward", "backward", "rest"]
_PASSES: tuple[Turn, ...] = ("forward", "backward")  # of several that are asked for, the first is made first

_active: list[Lockstep] = []


class Lockstep:
    """The passes of this process, each made when it is the turn of all processes."""

    def __init__(self, take_part: Callable[[Turn], None], before_backward: Callable[[], None]) -> None:
        """Prepare.

        Args:
            take_part: takes part in a pass of others, of which this process computes nothing.
            before_backward: begins a backward pass of this process.
        """
        self._take_part, self._before_backward = take_part, before_backward
        self._under_way = False

    def start(self, turn: Turn) -> None:
        """Wait for the turn of a pass; take part in all that come before it.

        Raises:
            InputError: a pass of this process stopped half-way, where the others wait for it.
        """
        if self._under_way:
            message = (
                "a pass stopped half-way, for the model failed or rows of a tensor belong to no sample; with "
                "run: {parallel: fsdp} give calibration.batch_size: 1, or give run: {parallel: samples}"
            )
            raise InputError(message)
        while (due := _due(turn)) != turn:
            self._take_part(due)
        self._under_way = turn != "rest"
        if turn == "backward":
            self._before_backward()

    def end(self) -> None:
        """Say that the pass is over."""
        self._under_way = False


@contextmanager
def in_lockstep(take_part: Callable[[Turn], None], before_backward: Callable[[], None]) -> Iterator[Lockstep]:
    """Make all passes inside a `with` together; an exchange between processes waits until none is left.

    Args:
        take_part: see `Lockstep`.
        before_backward: see `Lockstep`.
    """
    lockstep = Lockstep(take_part, before_backward)
    _active.append(lockstep)
    try:
        with ranks.first(lambda: lockstep.start("rest")):
            yield lockstep
    finally:
        _active.remove(lockstep)


@contextmanager
def backward_pass() -> Iterator[None]:
    """Make the backward pass inside a `with` when it is its turn."""
    for lockstep in _active:
        lockstep.start("backward")
    yield
    for lockstep in _active:
        lockstep.end()


def _due(turn: Turn) -> Turn:
    asked = {content.decode() for content in ranks.gather(turn.encode())}
    return next((each for each in _PASSES if each in asked), "rest")
