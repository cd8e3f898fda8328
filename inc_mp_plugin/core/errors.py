"""Every exception a user may see. Each carries the exit code of `inc-mp`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PluginError(Exception):
    """Base of all errors raised on purpose; its text is one line for the user."""

    exit_code = 1


class InputError(PluginError, ValueError):
    """The user's input is at fault: what was given, what is allowed, what to do."""

    exit_code = 2


class InfeasibleError(PluginError, ValueError):
    """No plan meets the constraint; the text names the least that can be met."""

    exit_code = 3


class CaptureError(PluginError):
    """The model's graph could not be captured."""


class NonFiniteError(PluginError, ArithmeticError):
    """A NaN or an infinity appeared; the text names the op."""


class SolverError(PluginError):
    """The solver stopped without a usable answer."""


class SelectionError(PluginError):
    """A consumer cannot run a plan, or INC would quantize other ops than it says."""

    exit_code = 2


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest known one.

    Example:
        >>> unknown("format", "fp8_e4m4", ["bf16", "fp8_e4m3"])
        "unknown format 'fp8_e4m4'; did you mean 'fp8_e4m3'? known: bf16, fp8_e4m3"
    """
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {given!r}; {hint}known: {', '.join(names)}"
