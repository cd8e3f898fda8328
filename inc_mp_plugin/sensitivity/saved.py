"""A measurement under way: the maxabs, rows and losses so far, as they are kept in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.sensitivity import maxabs as of_maxabs
from inc_mp_plugin.sensitivity import rows as of_rows
from inc_mp_plugin.sensitivity.one_batch import Measured

if TYPE_CHECKING:
    import torch

    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.runtime.store import Partial
    from inc_mp_plugin.sensitivity.maxabs import MaxAbs

_COUNTS = "samples"  # name of an array: the samples that were calibrated, measured, and run with all rounded
_MAXABS, _ROUNDED = "maxabs", "rounded"


@dataclass
class Saved:
    """The part of a measurement that is done, of the samples of one process.

    `calibrated` samples have gone into `maxabs`, `measured` samples have their `rows`, and `losses` holds
    those of samples with everything rounded, batch by batch.
    """

    maxabs: MaxAbs = field(default_factory=dict)
    calibrated: int = 0
    rows: Measured = field(default_factory=dict)
    measured: int = 0
    losses: list[FloatArray] = field(default_factory=list)

    @property
    def rounded(self) -> int:
        """Number of samples that ran with everything rounded."""
        return sum(map(len, self.losses))

    def add(self, measured: Measured, samples: int) -> None:
        """Add the rows of one batch, of so many samples."""
        for key, part in measured.items():
            self.rows[key] = of_rows.concatenate([self.rows[key], part]) if key in self.rows else part
        self.measured += samples

    def to_arrays(self) -> dict[str, Any]:
        """Name the arrays of all that is done."""
        return {
            _COUNTS: np.array([self.calibrated, self.measured]),
            **_named(_MAXABS, of_maxabs.to_arrays(self.maxabs)),
            **rows_to_arrays(self.rows),
            _ROUNDED: np.concatenate([np.zeros(0), *self.losses]),
        }

    @staticmethod
    def load(partial: Partial, formats: Sequence[str], sizes: Sequence[int], device: torch.device) -> Saved:
        """Load what is of use: all up to the end of a batch, in these formats.

        Args:
            partial: the file.
            formats: in which rounding errors are measured.
            sizes: numbers of samples after 0, 1, ... batches.
            device: of the maxabs.
        """
        arrays = partial.load()
        counts = arrays.get(_COUNTS)
        if counts is None or counts.shape != (2,):  # nothing, or of an older version
            return Saved()
        saved = Saved()
        calibrated, measured = counts.tolist()
        if calibrated in sizes:
            own = _of(_MAXABS, arrays)
            saved.maxabs, saved.calibrated = of_maxabs.from_arrays(own, device), calibrated
        rows = rows_from_arrays(arrays)
        if measured in sizes and all(set(part.rounding) == set(formats) for part in rows.values()):
            saved.rows, saved.measured = rows, measured
            losses = arrays[_ROUNDED]
            saved.losses = [losses] if len(losses) and len(losses) in sizes else []
        return saved


def rows_to_arrays(rows: Measured) -> dict[str, Any]:
    """Name the arrays of the rows by all yardsticks."""
    return {name: a for key, part in rows.items() for name, a in _named(key, of_rows.to_arrays(part)).items()}


def rows_from_arrays(arrays: Mapping[str, Any]) -> Measured:
    """Make rows of their arrays."""
    parts = {key: _of(key, arrays) for key in get_args(Yardstick)}
    return {key: of_rows.from_arrays(part) for key, part in parts.items() if part}


def _named(key: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{key} {name}": array for name, array in arrays.items()}


def _of(key: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    start = f"{key} "
    return {name.removeprefix(start): part for name, part in arrays.items() if name.startswith(start)}
