"""The passes over a model's batches: one for the scales, one for the rows; or one for both."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inc_mp_plugin.core.footprint import footprint
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.model.losses import check_labels
from inc_mp_plugin.model.tail import Tails
from inc_mp_plugin.model.weights import are_here
from inc_mp_plugin.sensitivity.batch_rows import Kinds, begin, measuring
from inc_mp_plugin.sensitivity.memory import free_bytes
from inc_mp_plugin.sensitivity.one_batch import Begun, Measured, Pass

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.sensitivity.maxabs import Calibration, MaxAbs

_MOST = 0.25  # of the memory that is free at the start, for batches whose backward passes wait


class Sweeps:
    """The passes over a model's batches.

    A rounding error follows from a scale, and the scale from all batches. So there is a pass for the scales
    before the one for the rows. Errors are needed in the backward pass alone: the activations of as many
    batches as memory allows stay, and these batches have one forward pass for both. `tails` is what is
    behind the model's blocks, looked for once.
    """

    def __init__(self, settings: Pass) -> None:
        """Prepare; nothing has run yet."""
        self._settings, self._kinds = settings, Kinds(settings)
        self._held: dict[int, Begun] = {}  # by the number of the first sample
        self.tails = Tails(settings.model, settings.graph)

    def calibrate(
        self, calibration: Calibration, batches: Iterable[Batch], *, rows_from: int = 1
    ) -> Iterator[None]:
        """Run all batches for the maxabs of the ops' inputs, in steps.

        Args:
            calibration: to be completed.
            batches: those that it has not seen.
            rows_from: number of the first sample whose rows are to be measured.

        Raises:
            NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
        """
        room = _Room(self._settings)
        for batch in batches:
            first = calibration.first
            if first >= rows_from and room.holds_another():
                maxabs: MaxAbs = {}
                self._held[first] = self._begin(replace(self._settings, held=maxabs), batch, first)
                calibration.take(batch, maxabs)
            else:
                calibration.run(batch)
            yield
        calibration.complete()

    def rows(self, batches: Iterable[Batch], *, first: int = 1) -> Iterator[Measured]:
        """Yield the rows of each batch in turn. Between two steps the model is as it came.

        Args:
            batches: as in `measure_sensitivity`.
            first: number of the first sample, for the texts of errors, and for the labels that are drawn.

        Raises:
            InputError: a loss is not one number per sample, or has no gradient.
            NonFiniteError: a NaN or an infinity; the text names the op.
        """
        for batch in batches:
            begun = self._held.pop(first, None) or self._begin(self._settings, batch, first)
            with measuring(self._settings, batch, first):
                measured = begun()
            del begun  # and with it the activations, before the next batch runs
            yield measured
            first += batch_size(batch)

    def _begin(self, settings: Pass, batch: Batch, first: int) -> Begun:
        if settings.loss and settings.loss_fn is None:
            check_labels(settings.model, batch, first)
        with measuring(settings, batch, first):
            if settings.low and settings.loss_fn is None:
                settings = replace(settings, tail=self.tails.of(batch))
            return begin(settings, self._kinds, batch, range(first, first + batch_size(batch)))


class _Room:
    """Memory for batches whose backward passes wait."""

    def __init__(self, settings: Pass) -> None:
        """Look at what is free."""
        parameter = next(settings.model.parameters(), torch.zeros(()))
        self._device, self._holds = parameter.device, not settings.low and are_here(settings.model)
        self._start = self._before = free_bytes(self._device)
        self._largest = footprint(settings.graph, parameter.element_size()).high

    def holds_another(self) -> bool:
        """Tell if there is room for one more batch, as large as the largest so far."""
        if not self._holds or self._start is None or self._before is None:
            return False
        free = free_bytes(self._device) or 0
        self._largest = max(self._largest, self._before - free)
        self._before = free
        return free - self._largest >= (1.0 - _MOST) * self._start
