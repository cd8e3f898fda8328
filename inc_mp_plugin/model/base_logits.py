"""The base model's logits, batch by batch: in files as far as they fit, to spare running it again."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inc_mp_plugin.model.divergence import row_blocks, rows_at_once

if TYPE_CHECKING:
    from inc_mp_plugin.model.distributions import Distributions

MOST_BYTES = 8 * 2**30
_NAME = ".base-logits-"


class _Kept(NamedTuple):
    path: Path
    classes: int
    dtype: torch.dtype


@dataclass
class BaseLogits:
    """Logits of the positions that count, by number of the batch, in a folder that ends with this object.

    Attributes:
        folder: that the folder of the files is made in.
        most_bytes: that the files may take; never more than half of what is free there.
    """

    folder: Path
    most_bytes: int = MOST_BYTES
    _kept: dict[int, _Kept] = field(default_factory=dict)
    _used: int = 0

    def __post_init__(self) -> None:
        """Make the folder; those that a killed process left behind are removed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        own = f"{_NAME}{os.getpid()}-"
        for other in self.folder.glob(f"{_NAME}*"):
            if not other.name.startswith(own):
                shutil.rmtree(other, ignore_errors=True)
        self._files = tempfile.TemporaryDirectory(prefix=own, dir=self.folder, ignore_cleanup_errors=True)

    def keep(self, number: int, predicted: Distributions) -> bool:
        """Write the logits of a batch; return False, and write nothing, if there is no room for them.

        Args:
            number: of the batch.
            predicted: by the base model.
        """
        logits, path = predicted.logits, Path(self._files.name, f"{number}.bin")
        classes = logits.shape[-1]
        size = int(predicted.counted.sum()) * classes * logits.element_size()
        if number in self._kept:
            return True
        if size > min(self.most_bytes - self._used, shutil.disk_usage(self._files.name).free // 2):
            return False
        try:
            with path.open("wb") as file:
                for rows in row_blocks(predicted):
                    file.write(rows.cpu().contiguous().view(torch.uint8).numpy().data)
        except OSError:  # others have filled the disk meanwhile: it is computed again
            path.unlink(missing_ok=True)
            return False
        self._used += size
        self._kept[number] = _Kept(path, classes, logits.dtype)
        return True

    def blocks(self, number: int) -> Iterator[Tensor] | None:
        """Read the logits of a batch as `row_blocks` yields them; None if they were not kept."""
        kept = self._kept.get(number)
        return None if kept is None else _read(kept)


def _read(kept: _Kept) -> Iterator[Tensor]:
    row = kept.classes * kept.dtype.itemsize
    with kept.path.open("rb") as file:
        while len(block := np.fromfile(file, np.uint8, rows_at_once(kept.classes) * row)):
            yield torch.from_numpy(block).view(kept.dtype).view(-1, kept.classes)
