"""Free space of a disk."""

from __future__ import annotations

import shutil
from pathlib import Path

from inc_mp_plugin.core.errors import InputError


def free_on_disk(folder: Path) -> int:
    """Return the bytes that are free where a folder is, or will be made."""
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    return shutil.disk_usage(place).free


def need_on_disk(folder: Path, needed: int, what: str) -> None:
    """Refuse work whose result would not fit on the disk.

    Args:
        folder: of the result.
        needed: bytes of the result.
        what: name of the result.

    Raises:
        InputError: less is free.
    """
    free = free_on_disk(folder)
    if free < needed:
        message = (
            f"{what} takes up to {needed / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free where {folder} is; "
            "make room there, or give --out on another disk"
        )
        raise InputError(message)
