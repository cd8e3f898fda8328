"""Tensors of a checkpoint: safetensors files in a folder of transformers, read in slabs of rows."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError, few

if TYPE_CHECKING:
    from torch import Tensor

INDEX = "model.safetensors.index.json"
_SLAB = 1 << 22  # elements that are in memory at once


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor of a checkpoint: the name of its file, its dtype in safetensors' words, its shape."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A folder of transformers with safetensors files; nothing is read before it is asked for.

    `config` is the content of config.json, `tensors` are those of all files, {name: tensor}.
    """

    folder: Path
    config: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    _files: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def files(self) -> list[str]:
        """Names of the files, sorted."""
        return sorted({stored.file for stored in self.tensors.values()})

    def slabs(self, name: str) -> Iterator[Tensor]:
        """Yield a tensor in parts along its first axis, in order, of about four million elements at most.

        A tensor without axes is one part.

        Args:
            name: of the tensor.
        """
        shape = self.tensors[name].shape
        if not shape:
            yield self._open(name).get_tensor(name)
            return
        elements = 1
        for size in shape[1:]:
            elements *= size
        rows = max(1, _SLAB // max(elements, 1))
        for start in range(0, shape[0], rows):
            yield self._open(name).get_slice(name)[start : start + rows]

    def matrix(self, name: str, number: int) -> Tensor:
        """Return a matrix out of a stack of matrices, by its number."""
        matrix: Tensor = self._open(name).get_slice(name)[number]
        return matrix

    def _open(self, name: str) -> Any:
        from safetensors import safe_open

        file = self.tensors[name].file
        if file not in self._files:
            with readable(self.folder / file):
                self._files[file] = safe_open(self.folder / file, "pt")
        return self._files[file]


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading a safetensors file into one line.

    Raises:
        InputError: the file is missing or damaged.
    """
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise InputError(message) from None
    except SafetensorError as error:
        message = f"{path} is truncated or damaged ({error}); copy it again"
        raise InputError(message) from None


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of all files of a folder.

    Raises:
        InputError: a file is missing or damaged, or the index names other tensors than the files hold.
    """
    config = read_config(folder)
    tensors, faults = read_tensors(folder)
    if faults:
        raise InputError("; ".join(faults[:3]))
    return Checkpoint(folder, config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json.

    Raises:
        InputError: it is missing or not JSON.
    """
    path = folder / "config.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror}; give a folder that transformers can load"
        raise InputError(message) from None
    except ValueError as error:
        message = f"{path} is no JSON: {error}"
        raise InputError(message) from None
    return config


def read_tensors(folder: Path) -> tuple[dict[str, Stored], list[str]]:
    """Read the names, dtypes and shapes of the tensors of a folder, and list what is wrong with its files.

    The files are those of the index, or all there are without an index.
    """
    tensors: dict[str, Stored] = {}
    try:
        index = _index(folder)
    except InputError as error:
        return tensors, [str(error)]
    files = sorted(set(index.values())) or sorted(path.name for path in folder.glob("*.safetensors"))
    faults = [] if files else [f"{folder} holds no safetensors files; save the model with save_pretrained"]
    for file in files:
        try:
            tensors |= _header(folder, file)
        except InputError as error:
            faults.append(str(error))
    absent = sorted(name for name, file in index.items() if name not in tensors or tensors[name].file != file)
    if absent and not faults:
        faults.append(f"{INDEX} names tensors that its files do not hold: {few(absent)}")
    unnamed = sorted(tensors.keys() - index.keys()) if index else []
    if unnamed:
        faults.append(f"{INDEX} does not name tensors of its files: {few(unnamed)}")
    return tensors, faults


def _index(folder: Path) -> dict[str, str]:
    path = folder / INDEX
    if not path.exists():
        return {}
    try:
        names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{path} is damaged ({error!r}); copy it again"
        raise InputError(message) from None
    return names


def _header(folder: Path, file: str) -> dict[str, Stored]:
    from safetensors import safe_open

    with readable(folder / file), safe_open(folder / file, "pt") as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
        return {
            name: Stored(file, part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()
        }
