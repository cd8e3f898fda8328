"""Sensitivities measured in steps, with a bar: after an interrupt, the measurement goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as with_settings
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.sensitivity.drift import with_drift
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.rows import Rows, concatenate, from_arrays, join, to_arrays
from inc_mp_plugin.sensitivity.taylor import sensitivity_rows, with_weights

if TYPE_CHECKING:
    from torch import nn

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
    scales: Scales | None = None,
    formats: Sequence[str] = (),
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
        scales: as in `measure_sensitivity`.
        formats: as in `measure_sensitivity`.

    Raises:
        InputError, NonFiniteError: as `measure_sensitivity`.
    """
    rows = _restore([partial.load()], formats)
    samples = sum(len(part.loss) for part in rows)
    sizes = np.cumsum([0, *(batch_size(batch) for batch in batches)]).tolist()
    done = sizes.index(samples) if samples in sizes else 0
    if not done:
        rows = []
    else:
        say(f"sensitivity: going on after {samples} samples that were measured before")
    with _passes(batches if scales is not None else (), "Maxabs of inputs") as calibration:
        rounding = observe_rounding(model, graph, calibration, loss_fn, scales=scales, formats=formats)
    with _passes(batches[done:], "Sensitivity", done=done) as remaining:
        first = sizes[done] + 1
        for measured in sensitivity_rows(model, graph, remaining, loss_fn, rounding=rounding, first=first):
            rows = [concatenate([*rows, measured])]
            partial.save(to_arrays(rows[0]))
    rows = _restore(ranks.exchange_arrays(to_arrays(rows[0]) if rows else {}), formats)
    sensitivity = with_weights(model, join(graph, rows))
    if rounding is not None:
        with _passes(batches, "Everything rounded") as everything:
            sensitivity = with_drift(
                model, graph, everything, loss_fn, rounding=rounding, sensitivity=sensitivity
            )
    partial.remove()
    return sensitivity


def _restore(parts: Sequence[dict[str, Any]], formats: Sequence[str]) -> list[Rows]:
    """Make rows of their arrays; rows of other formats, and empty parts, do not count."""
    rows = [from_arrays(arrays) for arrays in parts if "largest" in arrays]
    return [part for part in rows if set(part.rounding) == set(formats)]
