"""The memory that new work may take on Linux: of the machine, and of the groups that limit a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class _Names(NamedTuple):
    """Names of the files of a control group: its limit, its use, and the file pages in `memory.stat`."""

    limit: str
    use: str
    file_pages: tuple[str, str]


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
_V2 = _Names("memory.max", "memory.current", ("active_file", "inactive_file"))
_GROUPS = Path("sys/fs/cgroup")


def free_memory(root: Path = Path("/")) -> int | None:
    """Return the bytes that new work may take without swapping; None where Linux does not say.

    They are what the machine has, or what a control group of this process leaves, the least of all. Pages of
    files do not count as taken: the kernel drops them.

    Args:
        root: folder of `proc` and `sys`.
    """
    free = [*_of_the_machine(root), *_of_groups(root)]
    return max(0, min(free)) if free else None


def _of_the_machine(root: Path) -> Iterator[int]:
    for name, *values in map(str.split, _lines(root / "proc/meminfo")):
        if name == "MemAvailable:":
            yield int(values[0]) * 1024


def _of_groups(root: Path) -> Iterator[int]:
    """Yield what each group leaves: the process's own and those around it, of both versions of groups."""
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        if number == "0":
            names, top = _V2, root / _GROUPS
        elif "memory" in controllers.split(","):
            names, top = _V1, root / _GROUPS / "memory"
        else:
            continue
        own = top / path.lstrip("/")
        # Inside of a container the own group may be the top one, by whatever path the host knows it.
        for folder in dict.fromkeys([own, *(p for p in own.parents if p.is_relative_to(top)), top]):
            yield from _left_by(folder, names)


def _left_by(folder: Path, names: _Names) -> Iterator[int]:
    """Yield what a group leaves, if it has a limit."""
    limit, use = (_lines(folder / name) for name in (names.limit, names.use))
    if not limit or not use or limit[0] == "max":
        return
    stat = dict(line.split() for line in _lines(folder / "memory.stat"))
    yield int(limit[0]) - int(use[0]) + sum(int(stat.get(name, 0)) for name in names.file_pages)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
