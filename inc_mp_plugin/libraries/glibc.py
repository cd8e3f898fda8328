"""Memory that the C library keeps after it was freed; checked with glibc 2.36."""

from __future__ import annotations

import ctypes
import sys
from functools import cache


class _Numbers(ctypes.Structure):
    """The numbers of `mallinfo2`, in its order."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]  # noqa: RUF012


def give_back_freed() -> bool:
    """Give freed memory back to the system; return False where the C library has no such function.

    A lower `M_MMAP_THRESHOLD` does it at every single free, and makes a pass take half as long again.
    """
    trim = getattr(_library(), "malloc_trim", None)
    return trim is not None and bool(trim(0))


def kept_freed() -> int | None:
    """Return the bytes that were freed and not given back; None where the C library does not say."""
    numbers = getattr(_library(), "mallinfo2", None)  # since 2.33
    if numbers is None:
        return None
    numbers.restype = _Numbers
    return int(numbers().fordblks)


@cache
def _library() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform.startswith("linux") else None
