"""One writer per folder of artefacts: a second process is told who holds it.

The kernel keeps the lock (flock on `.inc-mp.lock` in the folder) and drops it when its process ends, however
that ends; so a file that a killed process left is taken over, and a number of a process that was given
away again misleads nobody. The file says who holds the lock, for people. Linux passes flock on to
an NFS server; where a file system has no locks, or a share may be mounted with local ones, what the file
says is all there is, and it is believed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime.progress import say, warn
from inc_mp_plugin.runtime.store import remove_left

NAME = ".inc-mp.lock"
_LONGEST = 120  # characters of a command that are shown
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

# By context, not by process: a second thread is another writer.
_held: ContextVar[frozenset[Path]] = ContextVar("folders held", default=frozenset())

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that writes in a folder; `boot` is the running kernel, which containers share."""

    process: int
    host: str
    boot: str
    command: str
    since: str

    def __str__(self) -> str:
        """Name the process."""
        return f"`{self.command}` (process {self.process} on {self.host}, since {self.since})"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if it is missing; within, calls of the same thread hold it, too.

    Raises:
        InputError: another process holds it, or may do so on another machine; or it cannot be written to.
    """
    place = folder.resolve()
    if place in _held.get():
        yield
        return
    path = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _take(path, folder)
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}"
        raise InputError(message) from error
    token = _held.set(_held.get() | {place})
    try:
        remove_left(folder)  # of any process: one of several may have been killed alone
        yield
    finally:
        _held.reset(token)
        path.unlink(missing_ok=True)  # before the lock is dropped: then the file may be another's
        os.close(file)


def exclusive(
    function: Callable[Concatenate[Path, Arguments], Result],
) -> Callable[Concatenate[Path, Arguments], Result]:
    """Wrap a function so that it holds the folder that is its first argument.

    A folder that is missing is not made, and not held.
    """

    @wraps(function)
    def alone(folder: Path, /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        with locked(folder) if folder.is_dir() else nullcontext():
            return function(folder, *args, **kwargs)

    return alone


def _take(path: Path, folder: Path) -> int:
    """Open and lock the file, and say in it who we are; return its descriptor, which holds the lock."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            has_locks = _lock(file, path, folder)
            if has_locks and _replaced(file, path):  # its holder removed it while we opened it
                os.close(file)
                continue
            _take_over(_read(file), path, folder, has_locks=has_locks)
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(asdict(_ourselves())).encode(), 0)
        except BaseException:
            os.close(file)
            raise
        return file


def _lock(file: int, path: Path, folder: Path) -> bool:
    """Lock the file; tell if the file system keeps locks at all."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(file) or "another process"
        message = f"{folder} is in use: {holder} writes there; wait until it has ended"
        raise InputError(message) from None
    except OSError as error:
        warn(f"{path.parent} is on a file system without locks ({error.strerror}): use it from one process")
        return False
    return True


def _take_over(before: Holder | None, path: Path, folder: Path, *, has_locks: bool) -> None:
    """Go on after a process that left its file behind, if it is sure to have ended."""
    if before is None:
        return
    us = _ourselves()
    if has_locks and (before.host == us.host or before.boot == us.boot != ""):
        say(f"{folder}: going on after {before}, which was ended before it was done")
        return
    message = (
        f"{folder} is in use: {before} writes there, or was ended before it was done, which cannot be "
        f"seen from here; if it has ended, delete {path}"
    )
    raise InputError(message)


def _replaced(file: int, path: Path) -> bool:
    try:
        return not os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return True


def _read(file: int) -> Holder | None:
    """Read from the file who holds the lock; None if it does not say: it is empty for a moment at first."""
    try:
        return Holder(**json.loads(os.pread(file, 1 << 16, 0)))
    except (ValueError, TypeError):
        return None


def _ourselves() -> Holder:
    script = Path(sys.argv[0])
    name = script.parent.name if script.stem == "__main__" else script.name  # python -m package
    command = shlex.join([name or "python", *sys.argv[1:]])
    shortened = command if len(command) <= _LONGEST else f"{command[:_LONGEST]}…"
    since = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    boot = _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else ""
    return Holder(os.getpid(), socket.gethostname(), boot, shortened, since)
