"""Memory that this process takes, in words."""

from __future__ import annotations

from pathlib import Path

_STATUS = Path("/proc/self/status")


def used_memory() -> str:
    """Say how much memory this process takes, and how much of that are mapped files; empty if unknown."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return ""
    kilobytes = {
        name: value.split()[0] for name, _, value in (line.partition(":") for line in lines) if value.split()
    }
    if "RssAnon" not in kilobytes or "RssFile" not in kilobytes:
        return ""
    own, mapped = (int(kilobytes[name]) * 1024 / 1e9 for name in ("RssAnon", "RssFile"))
    return f"{own:.2f} GB, and {mapped:.2f} GB of mapped files"
