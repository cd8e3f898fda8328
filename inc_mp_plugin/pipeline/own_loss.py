"""The user's own loss: a function in a file that a recipe names."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime.store import file_fingerprint

if TYPE_CHECKING:
    from types import ModuleType

    from inc_mp_plugin.model.losses import LossFunction

AUTO = "auto"


def loss_file(loss: str) -> Path:
    """Return the file that a recipe's `module:function` names."""
    path = Path(loss.rpartition(":")[0])
    return path if path.suffix == ".py" else path.with_name(f"{path.name}.py")


def loss_beside(loss: str, folder: Path) -> str:
    """Return `module:function` with the path of its file: beside the recipe, or in the working folder."""
    path = loss_file(loss)
    beside = folder / path
    return f"{beside if beside.exists() or not path.exists() else path}:{loss.rpartition(':')[2]}"


def loss_of(loss: str, *, allow_code: bool) -> LossFunction | None:
    """Return the loss function that a recipe names; None for the loss that the model's class tells.

    Args:
        loss: "auto", or `module:function`; the module is a file.
        allow_code: the user has allowed this process to run that file.

    Raises:
        InputError: the file is not there, may not be run or cannot be imported, or has no such function.
    """
    if loss == AUTO:
        return None
    path, name = loss_file(loss), loss.rpartition(":")[2]
    if not path.is_file():
        places = " nor ".join(dict.fromkeys(map(str, (path.absolute(), Path.cwd() / path.name))))
        message = f"loss is {loss}: there is no file {places}; write it beside the recipe"
        raise InputError(message)
    if not allow_code:
        message = (
            f"the recipe's loss is code, in {path}; read it, then give the same command with --allow-code"
        )
        raise InputError(message)
    function: LossFunction | None = getattr(_module(path), name, None)
    if not callable(function):
        message = f"loss is {loss}: {path} has no function {name}; define {name}(model, batch) there"
        raise InputError(message)
    return function


def loss_fingerprint(loss: str) -> str:
    """Hash the file of a loss that `loss_of` has returned, and the modules beside it that were imported."""
    folder = loss_file(loss).resolve().parent
    files = {str(getattr(module, "__file__", None)) for module in list(sys.modules.values())}
    beside = sorted(Path(file) for file in files if Path(file).parent == folder)
    hashes = [f"{path.name} {file_fingerprint(path)}" for path in beside]
    return f"{' '.join(hashes)}:{loss.rpartition(':')[2]}"


def _module(path: Path) -> ModuleType:
    """Load a file as a module under a name of its own; modules beside it can be imported by it."""
    spec = importlib.util.spec_from_file_location(f"inc_mp_own_loss_{path.stem}", path)
    if spec is None or spec.loader is None:
        message = f"{path} is not a file of Python"
        raise InputError(message)
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # for good: its functions may import modules when they are called
        sys.path.insert(0, folder)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except (SyntaxError, ImportError) as error:
        message = f"the recipe's loss {path} cannot be imported: {error}"
        raise InputError(message) from error
    return module
