"""Sensitivities as named arrays and back, for sensitivity.npz."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift, Sensitivity
from inc_mp_plugin.runtime.store import Json

# Names of arrays begin with these; the format, the key or the part follows.
_ROUNDING, _SECOND, _MAXABS = "rounding_", "second_", "maxabs_"


def to_content(sensitivity: Sensitivity, arrays_sha256: str) -> Json:
    """Write the content of sensitivity.json: a summary for people, and the hash of the arrays."""
    means = (sensitivity.input.mean(axis=0), sensitivity.weight.mean(axis=0))
    return {
        "samples": sensitivity.samples,
        "measured_rounding": sorted(sensitivity.rounding),
        "loss_ms": sensitivity.loss_ms,
        "ops": {
            name: {"input": float(x), "weight": float(w), "total": sensitivity.total[name]}
            for name, x, w in zip(sensitivity.ops, *means, strict=True)
        },
        "arrays_sha256": arrays_sha256,
    }


def to_arrays(sensitivity: Sensitivity) -> dict[str, Any]:
    """Name the arrays of sensitivity.npz; those of the rounding error only where it was measured."""
    rounding = {f"{_ROUNDING}{format_name}": rows for format_name, rows in sensitivity.rounding.items()}
    drift = {"drift": np.array(sensitivity.measured_drift)} if rounding else {}
    second = {f"{_SECOND}{key}": rows for key, rows in sensitivity.second.items()}
    return {
        "loss": sensitivity.loss,
        "input": sensitivity.input,
        "weight": sensitivity.weight,
        "ops": np.array(sensitivity.ops),
        **rounding,
        **drift,
        **second,
        **{f"{_MAXABS}{part}": array for part, array in sensitivity.maxabs.items()},
    }


def from_arrays(arrays: Mapping[str, Any]) -> Sensitivity:
    """Invert `to_arrays`.

    Raises:
        ValueError: the arrays do not fit together.
    """
    rounding, second, maxabs = (
        {key.removeprefix(start): rows for key, rows in arrays.items() if key.startswith(start)}
        for start in (_ROUNDING, _SECOND, _MAXABS)
    )
    sensitivity = Sensitivity(
        tuple(str(name) for name in arrays["ops"]),
        arrays["loss"],
        arrays["input"],
        arrays["weight"],
        rounding,
        measured_drift=Drift(*map(float, arrays.get("drift", NO_DRIFT))),
        second=second,
        maxabs=maxabs,
    )
    shape = (len(sensitivity.loss), len(sensitivity.ops))
    rows = (sensitivity.input, sensitivity.weight, *rounding.values(), *second.values())
    fit = all(array.shape == shape for array in rows)
    if not fit or any(array.shape != shape[1:] for array in maxabs.values()):
        message = "the arrays do not fit together"
        raise ValueError(message)
    return sensitivity
