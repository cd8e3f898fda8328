"""Differences between versions of INC, where nothing else of INC is needed; last checked with INC 3.10."""

from __future__ import annotations

import re


def installed_version() -> tuple[int, ...]:
    """Read the version of the installed INC, as numbers, where all its packages have it. INC 3.10."""
    from neural_compressor.common.version import __version__

    return tuple(int(part) for part in re.findall(r"\d+", str(__version__))[:3])


def channel_scales_have_a_floor() -> bool:
    """Tell if an output channel of zeros has a scale that is not 0, as from 3.7 on."""
    return installed_version() >= (3, 7)
