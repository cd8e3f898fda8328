"""Automatic mixed precision for inference, for Intel Neural Compressor: the public names.

Importing the package loads neither torch nor INC; each name is loaded when it is first used. The names stand
in `__init__.pyi` alone, which type checkers read, too.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

# {public name: (module, name there)}
_HOMES = {
    alias.asname or alias.name: (str(node.module), alias.name)
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text(encoding="utf-8")).body
    if isinstance(node, ast.ImportFrom)
    for alias in node.names
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOMES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    module, there = _HOMES[name]
    try:
        return getattr(import_module(module), there)
    except ModuleNotFoundError as error:
        from inc_mp_plugin.core.missing import not_installed

        missing = not_installed([error.name])
        if missing is None:
            raise
        raise missing from error


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
