"""Batches in a temporary folder: as many as there are, in the memory of one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from inc_mp_plugin.libraries.torch import leaves, map_tensors


class Spool(Sequence[Any]):
    """Batches whose tensors lie in files, each read when it is asked for; the files end with this object."""

    def __init__(self, batches: Iterable[Any]) -> None:
        """Write the tensors of one batch after the other."""
        self._folder = tempfile.TemporaryDirectory(prefix="inc_mp_plugin-")
        self._templates: list[Any] = []
        for batch in batches:
            tensors = [leaf for leaf in leaves(batch) if isinstance(leaf, torch.Tensor)]
            torch.save(tensors, self._path(len(self)))
            self._templates.append(map_tensors(lambda tensor: tensor.to("meta"), batch))

    def __len__(self) -> int:
        """Count the batches."""
        return len(self._templates)

    def __getitem__(self, index: Any) -> Any:
        """Read one batch, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        tensors = iter(torch.load(self._path(number), weights_only=True))
        return map_tensors(lambda _: next(tensors), self._templates[number])

    def _path(self, number: int) -> Path:
        return Path(self._folder.name, f"{number}.pt")
