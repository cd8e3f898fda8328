"""Differences between the versions of INC, 3.5 to 3.10; everything else is one code path."""

from __future__ import annotations

from importlib.util import find_spec

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries import neural_compressor as of_inc

OLDEST, AFTER = (3, 5), (4, 0)


def version() -> tuple[int, ...]:
    """Return the version of the installed INC, as numbers.

    Raises:
        InputError: it is one that the plugin does not know.
    """
    numbers = of_inc.installed_version()
    if not OLDEST <= numbers < AFTER:
        message = (
            f"INC {'.'.join(map(str, numbers))} is installed; ip_mse runs with neural-compressor>=3.5,<4"
        )
        raise InputError(message)
    return numbers


def has_legacy_tuning() -> bool:
    """Tell if there is a second tuning, for INT8, with a registry of strategies: up to 3.7.1."""
    return find_spec("neural_compressor.strategy") is not None


def autotune_forgets_the_best() -> bool:
    """Tell if autotune compares with `max_trials` only, and returns None after the last one: up to 3.6."""
    return version() < (3, 7)
