"""Memory that the C library keeps after it was freed; checked with glibc 2.36."""

from __future__ import annotations

import ctypes
import sys


def give_back_freed() -> bool:
    """Give freed memory back to the system; return False where the C library has no such function.

    A lower `M_MMAP_THRESHOLD` does it at every single free, and makes a pass take half as long again.
    """
    if not sys.platform.startswith("linux"):
        return False
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return trim is not None and bool(trim(0))
