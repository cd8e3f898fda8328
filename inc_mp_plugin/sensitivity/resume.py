"""Sensitivities measured in steps, with a bar: after an interrupt, the measurement goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as with_settings
from typing import TYPE_CHECKING

import numpy as np
import torch

from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.runtime.used_memory import used_memory
from inc_mp_plugin.sensitivity.drift import rounded_losses, with_drift
from inc_mp_plugin.sensitivity.effort import faster_in_fp32
from inc_mp_plugin.sensitivity.maxabs import Calibration
from inc_mp_plugin.sensitivity.memory import decided
from inc_mp_plugin.sensitivity.one_batch import Pass
from inc_mp_plugin.sensitivity.rounding import Rounding
from inc_mp_plugin.sensitivity.saved import Saved, rows_from_arrays, rows_to_arrays
from inc_mp_plugin.sensitivity.sweeps import Sweeps
from inc_mp_plugin.sensitivity.taylor import united

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.core.literals import Memory
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.runtime.store import Partial
    from inc_mp_plugin.scales.methods import Scales

_passes = with_settings(
    tracked, noun="batch", shorter="fewer samples (calibration.samples) or shorter ones take less"
)


def measure_in_steps(
    model: nn.Module,
    graph: Graph,
    batches: Sequence[Batch],
    loss_fn: LossFunction | None,
    *,
    partial: Partial,
    loss: bool = True,
    kl: Estimate | None = None,
    scales: Scales | None = None,
    formats: Sequence[str] = (),
    memory: Memory = "auto",
) -> Sensitivity:
    """Measure as `measure_sensitivity` does, and save all that is done after every batch of every pass.

    Of several processes, each measures batches of its own. The result holds the samples of all processes, in
    the order of their ranks.

    Args:
        model: as in `measure_sensitivity`.
        graph: from `capture`.
        batches: calibration batches of this process.
        loss_fn: as in `measure_sensitivity`.
        partial: where all that is done is kept; to be removed once the result is. Each process needs one of
            its own.
        loss: measure the sensitivities of the loss.
        kl: how those of the KL divergence are estimated; None if they are not measured.
        scales: as in `measure_sensitivity`.
        formats: as in `measure_sensitivity`.
        memory: as in `measure_sensitivity`.

    Raises:
        InputError, NonFiniteError: as `measure_sensitivity`.
    """
    rounding = Rounding.to(scales, formats)
    memory = decided(memory, model, graph, rounded=rounding is not None and loss)
    in_fp32 = faster_in_fp32(model, graph)
    settings = Pass(model, graph, loss_fn, rounding, loss, kl, memory == "low", in_fp32=in_fp32)
    steps = _Steps(settings, batches, partial)
    steps.calibrate()
    steps.measure()
    rows = [rows_from_arrays(part) for part in ranks.exchange_arrays(rows_to_arrays(steps.saved.rows))]
    sensitivity = united(settings, [part for part in rows if part])
    if rounding is not None and loss:
        steps.round_everything(rounding, sensitivity.ops)
        sensitivity = with_drift(sensitivity, steps.saved.losses, rounding.formats[0])
    return sensitivity


class _Steps:
    """Three passes over batches, each with a bar, and each of which goes on where it stopped."""

    def __init__(self, settings: Pass, batches: Sequence[Batch], partial: Partial) -> None:
        """Load what was done before."""
        self._settings, self._batches, self._partial = settings, batches, partial
        self._sizes = np.cumsum([0, *(batch_size(batch) for batch in batches)]).tolist()
        self._first = 1 + ranks.before(self._sizes[-1])
        self._sweeps = Sweeps(settings)
        parameter = next(settings.model.parameters(), torch.zeros(()))
        formats = settings.rounding.formats if settings.rounding else ()
        self.saved = Saved.load(partial, formats, self._sizes, parameter.device)
        if self.saved.measured:
            say(f"sensitivity: going on after {self.saved.measured} samples that were measured before")

    def calibrate(self) -> None:
        """Run the batches for the scales, if there are any."""
        rounding = self._settings.rounding
        if not isinstance(rounding, Rounding) or rounding.scales.per_token:
            return
        maxabs, loss_fn = rounding.maxabs, self._settings.loss_fn
        maxabs.update(self.saved.maxabs)
        self.saved.maxabs = maxabs
        done = self._sizes.index(self.saved.calibrated)
        calibration = Calibration(
            self._settings.model,
            self._settings.graph,
            loss_fn if self._settings.loss else None,
            maxabs,
            first=self._first + self.saved.calibrated,
            kernels=self._settings.kernels,
        )
        rows_from = self._first + self.saved.measured
        with _passes(self._batches[done:], "Maxabs of inputs", done=done) as batches:
            for _ in self._sweeps.calibrate(calibration, batches, rows_from=rows_from):
                self.saved.calibrated = calibration.first - self._first
                self._save()

    def measure(self) -> None:
        """Run the batches for their rows."""
        done = self._sizes.index(self.saved.measured)
        with _passes(self._batches[done:], "Sensitivity", done=done) as batches:
            for rows in self._sweeps.rows(batches, first=self._first + self.saved.measured):
                if not self.saved.measured and (used := used_memory()):
                    say(f"memory after the first batch: {used}")
                self.saved.add(rows, self._sizes[done + 1] - self._sizes[done])
                done += 1
                self._save()

    def round_everything(self, rounding: Rounding, ops: Sequence[str]) -> None:
        """Run the batches with all ops rounded that a sample reached, for their losses."""
        done = self._sizes.index(self.saved.rounded)

        def keep(losses: FloatArray) -> None:
            self.saved.losses.append(losses)
            self._save()

        with _passes(self._batches[done:], "Everything rounded", done=done) as batches:
            tails = self._sweeps.tails
            rounded_losses(self._settings, rounding, batches, ops, tails=tails, after=keep)

    def _save(self) -> None:
        self._partial.save(self.saved.to_arrays())
