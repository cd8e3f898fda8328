"""Sensitivities of some rows, batch by batch, and their union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.scales.methods import INPUT

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray

_ROUNDING, _SECOND = "rounding ", "second "  # begin the names of these arrays; the key follows


@dataclass(frozen=True, slots=True)
class Rows:
    """Sensitivities of the rows of one batch or of several: its samples, or all of them together.

    `loss`, `tokens` and `sizes` (positions and samples of a row) have shape (rows,), `largest` has shape
    (batches, 2, ops), all other arrays have shape (rows, ops). `called` names the ops that ran. `largest`
    holds the largest magnitude of an op's first and second input, -1 where there is none. `rounding` (by
    format) and `second` are as in `Totals`.
    """

    loss: FloatArray
    tokens: FloatArray
    sizes: FloatArray
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
        "tokens": rows.tokens,
        "sizes": rows.sizes,
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
    loss, tokens, sizes, input, weight = (
        arrays[key] for key in ("loss", "tokens", "sizes", "input", "weight")
    )
    return Rows(loss, tokens, sizes, input, weight, called, arrays["largest"], rounding, second)


def concatenate(rows: Sequence[Rows]) -> Rows:
    """Put the rows of several batches together, as rows of one."""
    parts = [to_arrays(part) for part in rows]
    return from_arrays({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def join(graph: Graph, rows: Sequence[Rows], estimate: Estimate | None = None) -> Sensitivity:
    """Put the rows of all batches together; ops that never ran are left out.

    Args:
        graph: from `capture`.
        rows: of all batches.
        estimate: of the KL divergence, if the rows are its.

    Raises:
        InputError: there are no rows.
    """
    if not rows:
        message = "no calibration batch was given; at least one is needed"
        raise InputError(message)
    whole = concatenate(rows)
    names = tuple(op.name for op in graph.ops)
    largest = whole.largest.max(axis=0)
    maxabs = {INPUT: np.where(largest < 0, np.inf, largest).min(axis=0)}
    parts = (whole.loss, whole.input, whole.weight, whole.rounding)
    joined = Sensitivity(names, *parts, second=whole.second, maxabs=maxabs).of(whole.called)
    if estimate is None:
        return joined
    return replace(
        joined,
        yardstick="kl",
        rows=estimate.rows,
        draws=estimate.draws,
        tokens=whole.tokens,
        sizes=whole.sizes,
    )
