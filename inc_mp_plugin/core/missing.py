"""Packages that only some features need, and the extras that bring them."""

from __future__ import annotations

from collections.abc import Collection

from inc_mp_plugin.core.errors import InputError

# Extras by the modules that they bring.
EXTRAS = {
    "torch": "inc",
    "neural_compressor": "inc",
    "transformers": "hf",
    "safetensors": "hf",
    "huggingface_hub": "hf",
    "accelerate": "hf",
}


def not_installed(names: Collection[str | None]) -> InputError | None:
    """Make the error of modules that are not installed; None if there is none that an extra brings.

    Args:
        names: of the modules, as `ModuleNotFoundError` has them.

    Example:
        >>> print(not_installed(["torch", "transformers"]))
        not installed: torch, transformers; run: pip install 'inc_mp_plugin[hf,inc]'
        >>> not_installed(["os.nothing"]) is None
        True
    """
    modules = [(name or "").partition(".")[0] for name in names]
    known = [module for module in modules if module in EXTRAS]
    if not known:
        return None
    extras = ",".join(sorted({EXTRAS[module] for module in known}))
    message = f"not installed: {', '.join(known)}; run: pip install 'inc_mp_plugin[{extras}]'"
    return InputError(message)
