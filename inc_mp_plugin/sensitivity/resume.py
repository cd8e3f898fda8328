"""Measuring sensitivities in steps: with a bar, and going on after an interrupt where it stopped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial as with_settings
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.batches import batch_size
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.sensitivity.drift import with_drift
from inc_mp_plugin.sensitivity.rounding import observe_rounding
from inc_mp_plugin.sensitivity.taylor import Rows, concatenate, join, sensitivity_rows, with_weights

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.runtime.store import Partial
    from inc_mp_plugin.scales.methods import Scales

_passes = with_settings(
    tracked, noun="batch", shorter="fewer samples (calibration.samples) or shorter ones take less"
)
_ROUNDING, _SECOND = "rounding ", "second "  # begin the names of these arrays; the key follows


def measure_in_steps(
    model: nn.Module,
    graph: Graph,
    batches: Sequence[Batch],
    loss_fn: LossFunction | None,
    partial: Partial,
    *,
    scales: Scales | None = None,
    formats: Sequence[str] = (),
) -> Sensitivity:
    """Do what `measure_sensitivity` does, saving the rows after every batch.

    Of several processes each measures batches of its own; the result holds the samples of all, in the
    order of their ranks. After an interrupt the passes for the maxabs of the ops' inputs and for the
    drift, which take no gradients, are made again.

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
    with _passes(batches if scales is not None else (), "Maxabs of inputs") as seen:
        rounding = observe_rounding(model, graph, seen, loss_fn, scales, formats)
    with _passes(batches[done:], "Sensitivity", done=done) as remaining:
        first = sizes[done] + 1
        for measured in sensitivity_rows(model, graph, remaining, loss_fn, rounding, first=first):
            rows.append(measured)
            partial.save(_arrays(concatenate(rows)))
    if ranks.size() > 1:
        everywhere = ranks.exchange_arrays(_arrays(concatenate(rows)) if rows else {})
        rows = _restore(everywhere, formats)
    sensitivity = with_weights(model, join(graph, rows))
    if rounding is not None:
        with _passes(batches, "Everything rounded") as everything:
            sensitivity = with_drift(model, graph, everything, loss_fn, rounding, sensitivity)
    partial.remove()
    return sensitivity


def _arrays(rows: Rows) -> dict[str, object]:
    return {
        "loss": rows.loss,
        "input": rows.input,
        "weight": rows.weight,
        "called": np.array(sorted(rows.called)),
        "largest": rows.largest,
        **{f"{_ROUNDING}{format_name}": part for format_name, part in rows.rounding.items()},
        **{f"{_SECOND}{key}": part for key, part in rows.second.items()},
    }


def _restore(parts: Sequence[dict[str, np.ndarray]], formats: Sequence[str]) -> list[Rows]:
    return [rows for arrays in parts if (rows := _rows(arrays, formats)) is not None]


def _rows(arrays: dict[str, np.ndarray], formats: Sequence[str]) -> Rows | None:
    rounding, second = (
        {name.removeprefix(start): part for name, part in arrays.items() if name.startswith(start)}
        for start in (_ROUNDING, _SECOND)
    )
    if not arrays or set(rounding) != set(formats) or not second or "largest" not in arrays:
        return None
    called = frozenset(str(name) for name in arrays["called"])
    loss, input, weight, largest = (arrays[key] for key in ("loss", "input", "weight", "largest"))
    return Rows(loss, input, weight, called, largest, rounding, second)
