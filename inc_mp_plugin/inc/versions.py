"""What differs between the versions of INC, 3.5 to 3.10; everything else is one code path."""

from __future__ import annotations

import re
from importlib.util import find_spec

from inc_mp_plugin.core.errors import InputError

OLDEST, AFTER = (3, 5), (4, 0)


def version() -> tuple[int, ...]:
    """Version of the installed INC, as numbers.

    Raises:
        InputError: it is one that the plugin does not know.
    """
    from neural_compressor.common.version import __version__  # neural-compressor-pt has no other

    found = tuple(int(part) for part in re.findall(r"\d+", str(__version__))[:3])
    if not OLDEST <= found < AFTER:
        message = f"INC {__version__} is installed; ip_mse runs with neural-compressor>=3.5,<4"
        raise InputError(message)
    return found


def has_legacy_tuning() -> bool:
    """Up to 3.7.1 there is a second tuning, for INT8, with a registry of strategies."""
    return find_spec("neural_compressor.strategy") is not None


def channel_scales_have_a_floor() -> bool:
    """From 3.7 on an output channel of zeros has a scale, which is not 0."""
    return version() >= (3, 7)


def autotune_forgets_the_best() -> bool:
    """Up to 3.6 autotune compares with `max_trials` only, and returns None after the last configuration."""
    return version() < (3, 7)
