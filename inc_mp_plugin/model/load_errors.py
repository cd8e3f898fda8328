"""Loading through transformers: an error of any library is one line, with the damaged file and the remedy."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inc_mp_plugin.core.errors import InputError

# Raised by transformers, torch, safetensors and the file system on damaged folders; 5.24, 4.55.
_KINDS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    EOFError,
    pickle.UnpicklingError,
)
_IN_WORDS = (OSError, ValueError, ImportError)  # their texts are sentences; others show their class, too


@contextmanager
def loading(kind: str, name_or_path: str, *, missing: bool = False) -> Iterator[None]:
    """Turn the errors of loading something inside a `with` into one line.

    Args:
        kind: "model", "configuration", "tokenizer", "processor" or "dataset".
        name_or_path: its folder, or its name on a hub.
        missing: tell that there is no such file or folder here either.

    Raises:
        InputError: a library could not load it, or there is no such folder.
    """
    if _is_path(name_or_path) and not Path(name_or_path).exists():
        message = f"the {kind} {name_or_path!r} cannot be loaded: it is no folder here, and no name on a hub"
        raise InputError(message)
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _is_of_loading(error):
            raise
        here = "; there is no file or folder of this name here either" if missing else ""
        message = f"{_line(kind, name_or_path, error)}{here}"
        raise InputError(message) from error


def _is_of_loading(error: Exception) -> bool:
    from huggingface_hub import errors
    from safetensors import SafetensorError

    strict = getattr(errors, "StrictDataclassError", SafetensorError)  # of configurations since 5.0
    # tokenizers raises Exception itself.
    return type(error) is Exception or isinstance(error, (*_KINDS, strict, SafetensorError))


def _line(kind: str, name_or_path: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    reason = text if isinstance(error, _IN_WORDS) else f"{type(error).__name__}: {text}"
    start = f"the {kind} {name_or_path!r} cannot be loaded"
    damaged = _damaged_file(Path(name_or_path)) if kind == "model" else None
    if damaged is not None:
        return f"{start}: {damaged.name} is damaged or cut short; download it again"
    if isinstance(error, FileNotFoundError):
        return f"{start}: {reason[:200]}; download what is missing"
    return f"{start}: {reason[:200]}"


def _damaged_file(folder: Path) -> Path | None:
    """Find the first file of weights in a folder that cannot be read."""
    import torch
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "pt"):
                pass
        except (OSError, SafetensorError):
            return path
    for path in sorted(folder.glob("*.bin")):
        try:
            torch.load(path, map_location="meta", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError):
            return path
    return None


def _is_path(name_or_path: str) -> bool:
    """Tell a path from a name on a hub, which is NAME or OWNER/NAME."""
    return name_or_path.count("/") > 1 or name_or_path.startswith(("/", "./", "../", "~"))
