"""What a person sees while a stage runs: lines, and a bar with the time left. All on standard error."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from inc_mp_plugin import ranks

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")


@lru_cache(maxsize=1)
def console() -> Console:
    """The console on standard error."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def say(text: str) -> None:
    """Print one line; of several processes only the first does."""
    if ranks.rank():
        return
    console().print(text, markup=False, soft_wrap=True)


def track(items: Sequence[Item], description: str, done: int = 0) -> Generator[Item, None, None]:
    """Yield items behind a bar that shows how many are done and how long the rest will take."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    if not console().is_terminal:
        say(f"{description}: {len(items)} steps")
    hidden = not console().is_terminal or ranks.rank() > 0
    with Progress(*columns, console=console(), transient=True, disable=hidden) as bar:
        task = bar.add_task(description, total=done + len(items), completed=done)
        for item in items:
            yield item
            bar.advance(task)
