"""Progress of work under way, as a person may see it: lines, and bars with the time left.

Lines go to the logger "inc_mp_plugin", which shows nothing by itself. `shown`, for the command line, shows
them on standard error and, in a terminal, bars.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from threading import Event, Thread
from typing import TYPE_CHECKING, TypeVar

from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.pace import Pace, Work

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("inc_mp_plugin")
LOGGER.addHandler(logging.NullHandler())  # or Python would print warnings where logging is not set up

_PERIOD_S = 30.0  # between two lines of work under way

Item = TypeVar("Item")


@lru_cache(maxsize=1)
def console() -> Console:
    """Return the console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Log one line of what is done; of several processes only the first does."""
    if not ranks.rank():
        LOGGER.info("%s", text)


def warn(text: str) -> None:
    """Log one line that a person should know of; of several processes only the first does."""
    if not ranks.rank():
        LOGGER.warning("%s", text)


def tell(text: str) -> None:
    """Print one line of the command line's own, whatever is logged; of several processes only the first."""
    if not ranks.rank():
        console().print(text, markup=False, soft_wrap=True)


class _Lines(logging.Handler):
    """Handler that prints what is logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one line."""
        console().print(record.getMessage(), markup=False, soft_wrap=True)


@contextmanager
def shown() -> Iterator[None]:
    """Show lines and bars on standard error, and nowhere else: for the command line."""
    if _is_shown():
        yield
        return
    level, propagate, handler = LOGGER.level, LOGGER.propagate, _Lines()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    LOGGER.propagate = False  # a script that sets up logging of its own would show each line twice
    try:
        yield
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        LOGGER.propagate = propagate


def _is_shown() -> bool:
    return any(isinstance(handler, _Lines) for handler in LOGGER.handlers)


@contextmanager
def tracked(
    items: Sequence[Item], description: str, *, done: int = 0, noun: str = "step", shorter: str = ""
) -> Iterator[Iterator[Item]]:
    """Yield an iterator over items, each of them a step; see `steps`.

    Args:
        items: those that are left.
        description: of the work.
        done: steps made earlier, whose items are not among these.
        noun: name of a step.
        shorter: how to make it shorter.
    """

    def each() -> Iterator[Item]:
        for item in items:
            yield item
            advance()

    with steps(Work(description, done + len(items), done, noun, shorter=shorter)) as advance:
        yield each()


@contextmanager
def steps(work: Work) -> Iterator[Callable[[], None]]:
    """Yield a function that is to be called after each step; what is done, and left, is shown meanwhile.

    In a terminal of the command line a bar; elsewhere a line at the start, one about every 30 seconds and
    one at the end. Work that will take more than ten minutes is announced after its first step.
    """
    if work.total <= work.done:
        yield lambda: None
        return
    now_s = time.monotonic()
    under_way = _UnderWay(Pace(work, now_s, now_s))
    with _display(under_way):
        yield under_way.advance


def _display(under_way: _UnderWay) -> AbstractContextManager[None]:
    """Choose how work is shown: as a bar, in lines, or not at all, as on every rank but the first."""
    if ranks.rank():
        return nullcontext()
    if _is_shown() and console().is_terminal:
        return _bar(under_way)
    if LOGGER.isEnabledFor(logging.INFO):
        return _lines(under_way)
    return nullcontext()


class _UnderWay:
    """The pace of work, from step to step."""

    def __init__(self, pace: Pace) -> None:
        self.pace = pace
        self.show: Callable[[int], None] = lambda made: None

    def advance(self) -> None:
        """Count a step."""
        self.pace = self.pace.stepped(time.monotonic())
        self.show(self.pace.made)
        if self.pace.announcement:
            say(self.pace.announcement)


@contextmanager
def _lines(under_way: _UnderWay) -> Iterator[None]:
    """Log lines from a thread inside a `with`, for a step may take longer than the interval."""
    ended = Event()

    def report() -> None:
        while not ended.wait(_PERIOD_S):
            say(under_way.pace.line(time.monotonic()))

    say(under_way.pace.work.start)
    thread = Thread(target=report, name="inc_mp_plugin progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    say(under_way.pace.end(time.monotonic()))


@contextmanager
def _bar(under_way: _UnderWay) -> Iterator[None]:
    """Show a bar with the words of the lines; rich's own time left forgets steps of half a minute or more."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class Words(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(under_way.pace.words(time.monotonic()))

    work = under_way.pace.work
    columns = (TextColumn("{task.description}"), BarColumn(), Words())
    with Progress(*columns, console=console(), transient=True) as bar:
        task = bar.add_task(work.description, total=work.total, completed=work.done)
        under_way.show = lambda made: bar.update(task, completed=work.done + made)
        yield
