"""Every exception a user may see. Each carries the exit code of `inc-mp`."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class PluginError(Exception):
    """Base of all errors raised on purpose; its text is one line for the user."""

    exit_code = 1


class InputError(PluginError, ValueError):
    """Fault in the user's input; the text says what was given, what is allowed, and what to do."""

    exit_code = 2


class InfeasibleError(PluginError, ValueError):
    """Constraint that no plan meets; the text names the least that can be met."""

    exit_code = 3


class CaptureError(PluginError):
    """Failure to capture the model's graph."""


class NonFiniteError(PluginError, ArithmeticError):
    """Appearance of a NaN or an infinity; the text names the op."""


class SolverError(PluginError):
    """Stop of the solver without a usable answer."""


class SelectionError(PluginError):
    """Plan that a consumer cannot run, or of which INC would quantize other ops than the plan says."""

    exit_code = 2


def unknown(kind: str, name: str, allowed: Iterable[str]) -> str:
    """Say that a name is unknown, with the nearest allowed one.

    Args:
        kind: of the name, such as "format".
        name: the unknown one.
        allowed: all names of this kind.

    Example:
        >>> unknown("format", "fp8_e4m4", ["bf16", "fp8_e4m3"])
        "unknown format 'fp8_e4m4'; did you mean 'fp8_e4m3'? known: bf16, fp8_e4m3"
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {kind} {name!r}; {hint}known: {', '.join(names)}"


def few(names: Sequence[str]) -> str:
    """Write three names at most, and the number of the others.

    Example:
        >>> few(["q", "k", "v", "o"])
        'q, k, v and 1 more'
    """
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
