"""Sensitivities of some samples, batch by batch, and their union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.model.modes import say_unreached
from inc_mp_plugin.scales.methods import INPUT

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray

_ROUNDING, _SECOND = "rounding ", "second "  # begin the names of these arrays; the key follows


@dataclass(frozen=True, slots=True)
class Rows:
    """Sensitivities of the samples of one batch or of several.

    `loss` has shape (samples,), `largest` has shape (batches, 2, ops), all other arrays have shape
    (samples, ops). `called` names the ops that ran. `largest` holds the largest magnitude of an op's first
    and second input, -1 where there is none. `rounding` (by format) and `second` are as in `Totals`.
    """

    loss: FloatArray
    input: FloatArray
    weight: FloatArray
    called: frozenset[str]
    largest: FloatArray
    rounding: Mapping[str, FloatArray] = field(default_factory=dict)
    second: Mapping[str, FloatArray] = field(default_factory=dict)


def to_arrays(rows: Rows) -> dict[str, Any]:
    """Name the arrays of rows, for a file or for other processes."""
    return {
        "loss": rows.loss,
        "input": rows.input,
        "weight": rows.weight,
        "called": np.array(sorted(rows.called), dtype=str),
        "largest": rows.largest,
        **{f"{_ROUNDING}{format_name}": part for format_name, part in rows.rounding.items()},
        **{f"{_SECOND}{key}": part for key, part in rows.second.items()},
    }


def from_arrays(arrays: Mapping[str, Any]) -> Rows:
    """Invert `to_arrays`."""
    rounding, second = (
        {name.removeprefix(start): part for name, part in arrays.items() if name.startswith(start)}
        for start in (_ROUNDING, _SECOND)
    )
    called = frozenset(arrays["called"].tolist())
    loss, input, weight, largest = (arrays[key] for key in ("loss", "input", "weight", "largest"))
    return Rows(loss, input, weight, called, largest, rounding, second)


def concatenate(rows: Sequence[Rows]) -> Rows:
    """Put the rows of several batches together, as rows of one."""
    parts = [to_arrays(part) for part in rows]
    return from_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def join(graph: Graph, rows: Sequence[Rows]) -> Sensitivity:
    """Put the rows of all batches together; ops that never ran are named in a warning and left out.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        message = "no calibration batch was given; at least one is needed"
        raise InputError(message)
    whole = concatenate(rows)
    say_unreached(graph, whole.called)
    names = tuple(op.name for op in graph.ops)
    largest = whole.largest.max(axis=0)
    maxabs = {INPUT: np.where(largest < 0, np.inf, largest).min(axis=0)}
    parts = (whole.loss, whole.input, whole.weight, whole.rounding)
    return Sensitivity(names, *parts, second=whole.second, maxabs=maxabs).of(whole.called)
