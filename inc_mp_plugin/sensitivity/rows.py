"""Sensitivities of some rows, batch by batch, and their union."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.scales.methods import INPUT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from inc_mp_plugin.core.sensitivity import FloatArray

# What the names of these arrays begin with; the key follows.
_ROUNDING, _SECOND, _SHARED = "rounding ", "second ", "shared "


@dataclass(frozen=True, slots=True)
class Rows:
    """Sensitivities of the rows of one batch or of several: its samples, or all of them together.

    `loss`, `tokens` and `sizes` (positions and samples of a row) have shape (rows,), `largest` has shape
    (batches, 2, ops), `reads` (batches, ops), all other arrays have shape (rows, ops). `called` names the ops
    that ran. `largest` holds the largest magnitude of an op's first and second input, -1 where there is none.
    `rounding` and `shared` (by format), `second` and `reads` are as in `Totals`.
    """

    loss: FloatArray
    tokens: FloatArray
    sizes: FloatArray
    input: FloatArray
    weight: FloatArray
    called: frozenset[str]
    largest: FloatArray
    rounding: Mapping[str, FloatArray]
    second: Mapping[str, FloatArray]
    shared: Mapping[str, FloatArray]
    reads: NDArray[np.int64]


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
        **{f"{_SHARED}{format_name}": part for format_name, part in rows.shared.items()},
        "reads": rows.reads,
    }


def from_arrays(arrays: Mapping[str, Any]) -> Rows:
    """Invert `to_arrays`."""
    rounding, second, shared = (
        {name.removeprefix(start): part for name, part in arrays.items() if name.startswith(start)}
        for start in (_ROUNDING, _SECOND, _SHARED)
    )
    called = frozenset(arrays["called"].tolist())
    loss, tokens, sizes, input, weight = (
        arrays[key] for key in ("loss", "tokens", "sizes", "input", "weight")
    )
    parts = (loss, tokens, sizes, input, weight, called, arrays["largest"], rounding, second, shared)
    return Rows(*parts, arrays["reads"])


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
    reads = whole.reads.max(axis=0)
    several = bool((reads >= 0).any())
    joined = Sensitivity(
        names,
        *parts,
        second=whole.second,
        maxabs=maxabs,
        shared=whole.shared if several else {},
        reads=reads if several else None,
    ).of(whole.called)
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
