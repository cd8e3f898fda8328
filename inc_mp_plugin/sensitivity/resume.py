"""Sensitivities measured in steps, with a bar: after an interrupt, the measurement goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial as with_settings
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.sensitivity.drift import with_drift
from inc_mp_plugin.sensitivity.memory import decided
from inc_mp_plugin.sensitivity.one_batch import Measured, Pass
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.rows import Rows, concatenate, from_arrays, to_arrays
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows, united

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.core.literals import Memory
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.runtime.store import Partial
    from inc_mp_plugin.scales.methods import Scales

_SAMPLES = "samples"  # name of an array: how many the rows are of
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
    """Measure as `measure_sensitivity` does, and save the rows after every batch.

    Of several processes, each measures batches of its own. The result holds the samples of all processes, in
    the order of their ranks. After an interrupt, the two passes without gradients are made again: the pass
    for the maxabs of the ops' inputs, and the pass for the drift.

    Args:
        model: as in `measure_sensitivity`.
        graph: from `capture`.
        batches: calibration batches of this process.
        loss_fn: as in `measure_sensitivity`.
        partial: where rows are kept until all are there. Each process needs one of its own.
        loss: measure the sensitivities of the loss.
        kl: how those of the KL divergence are estimated; None if they are not measured.
        scales: as in `measure_sensitivity`.
        formats: as in `measure_sensitivity`.
        memory: as in `measure_sensitivity`.

    Raises:
        InputError, NonFiniteError: as `measure_sensitivity`.
    """
    rows, samples = _restore(partial.load(), formats)
    sizes = np.cumsum([0, *(batch_size(batch) for batch in batches)]).tolist()
    done = sizes.index(samples) if samples in sizes else 0
    if not done:
        rows = {}
    else:
        say(f"sensitivity: going on after {samples} samples that were measured before")
    own = loss_fn if loss else None
    with _passes(batches if scales is not None else (), "Maxabs of inputs") as calibration:
        rounding = observe_rounding(model, graph, calibration, own, scales=scales, formats=formats)
    memory = decided(memory, model, graph, rounded=rounding is not None and loss)
    settings = Pass(model, graph, loss_fn, rounding, loss, kl, memory == "low")
    first = 1 + ranks.before(sizes[-1]) + sizes[done]
    with _passes(batches[done:], "Sensitivity", done=done) as remaining:
        for measured in sensitivity_rows(settings, remaining, first=first):
            rows = {key: concatenate([*_of(rows, key), part]) for key, part in measured.items()}
            done += 1
            partial.save(_to_arrays(rows, sizes[done]))
    parts = [_restore(part, formats)[0] for part in ranks.exchange_arrays(_to_arrays(rows, sizes[done]))]
    sensitivity = united(settings, [part for part in parts if part])
    if rounding is not None and loss:
        with _passes(batches, "Everything rounded") as everything:
            sensitivity = with_drift(
                model,
                graph,
                everything,
                loss_fn,
                rounding=rounding,
                sensitivity=sensitivity,
                as_used=settings.low,
            )
    partial.remove()
    return sensitivity


def _of(rows: Measured, key: Yardstick) -> list[Rows]:
    return [rows[key]] if key in rows else []


def _to_arrays(rows: Measured, samples: int) -> dict[str, Any]:
    """Name the arrays of the rows by all yardsticks, and the number of samples that they are of."""
    arrays = {f"{key} {name}": array for key, part in rows.items() for name, array in to_arrays(part).items()}
    return {**arrays, _SAMPLES: np.array(samples)} if arrays else {}


def _restore(arrays: Mapping[str, Any], formats: Sequence[str]) -> tuple[Measured, int]:
    """Make rows of their arrays, and count their samples; rows of other formats do not count."""
    rows: Measured = {}
    for key in get_args(Yardstick):
        own = {
            name.removeprefix(f"{key} "): part for name, part in arrays.items() if name.startswith(f"{key} ")
        }
        if own:
            rows[key] = from_arrays(own)
    if any(set(part.rounding) != set(formats) for part in rows.values()) or _SAMPLES not in arrays:
        return {}, 0
    return rows, int(arrays[_SAMPLES])
