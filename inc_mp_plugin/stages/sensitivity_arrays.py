"""Sensitivities as named arrays and back, for sensitivity.npz."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np

from inc_mp_plugin.core.literals import Estimator, Yardstick
from inc_mp_plugin.core.sensitivity import NO_DRIFT, Drift, Sensitivity
from inc_mp_plugin.runtime.store import Json

# Names of arrays begin with these; the format, the key or the part follows.
_ROUNDING, _SECOND, _SHARED, _MAXABS, _KL = "rounding_", "second_", "shared_", "maxabs_", "kl_"


def to_content(sensitivity: Sensitivity, arrays_sha256: str) -> Json:
    """Write the content of sensitivity.json: a summary for people, and the hash of the arrays."""
    means = (sensitivity.input.mean(axis=0), sensitivity.weight.mean(axis=0))
    both = [part for part in (sensitivity, sensitivity.kl) if part is not None]
    kl = next((part for part in both if part.yardstick == "kl"), None)
    return {
        "samples": sensitivity.samples,
        "yardsticks": [part.yardstick for part in both],
        **({} if kl is None else _kl_content(kl)),
        "measured_rounding": sorted(sensitivity.rounding),
        "loss_ms": sensitivity.loss_ms,
        "ops": {
            name: {"input": float(x), "weight": float(w), "total": sensitivity.total[name]}
            for name, x, w in zip(sensitivity.ops, *means, strict=True)
        },
        "arrays_sha256": arrays_sha256,
    }


def _kl_content(kl: Sensitivity) -> Json:
    tokens, sizes = (None if array is None else array.tolist() for array in (kl.tokens, kl.sizes))
    return {"rows": kl.rows, "draws": kl.draws, "sizes": sizes, "tokens": tokens}


def to_arrays(sensitivity: Sensitivity) -> dict[str, Any]:
    """Name the arrays of sensitivity.npz; those of the rounding error only where it was measured."""
    rounding = {f"{_ROUNDING}{format_name}": rows for format_name, rows in sensitivity.rounding.items()}
    drift = {"drift": np.array(sensitivity.measured_drift)} if rounding else {}
    counts = {"tokens": sensitivity.tokens, "sizes": sensitivity.sizes, "reads": sensitivity.reads}
    kl = {} if sensitivity.kl is None else to_arrays(sensitivity.kl)
    second = {f"{_SECOND}{key}": rows for key, rows in sensitivity.second.items()}
    second |= {f"{_SHARED}{format_name}": rows for format_name, rows in sensitivity.shared.items()}
    return {
        "loss": sensitivity.loss,
        "input": sensitivity.input,
        "weight": sensitivity.weight,
        "ops": np.array(sensitivity.ops),
        **(_words(sensitivity) if sensitivity.yardstick == "kl" else {}),
        **{name: array for name, array in counts.items() if array is not None},
        **{f"{_KL}{name}": array for name, array in kl.items()},
        **rounding,
        **drift,
        **second,
        **{f"{_MAXABS}{part}": array for part, array in sensitivity.maxabs.items()},
    }


def _words(sensitivity: Sensitivity) -> dict[str, Any]:
    words = (sensitivity.yardstick, sensitivity.rows, sensitivity.draws)
    return {name: np.array(word) for name, word in zip(("yardstick", "rows", "draws"), words, strict=True)}


def from_arrays(arrays: Mapping[str, Any]) -> Sensitivity:
    """Invert `to_arrays`.

    Raises:
        ValueError: the arrays do not fit together.
    """
    rounding, second, shared, maxabs, kl = (
        {key.removeprefix(start): rows for key, rows in arrays.items() if key.startswith(start)}
        for start in (_ROUNDING, _SECOND, _SHARED, _MAXABS, _KL)
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
        yardstick=_text(arrays, "yardstick", get_args(Yardstick)),
        rows=_text(arrays, "rows", get_args(Estimator)),
        draws=int(arrays.get("draws", 1)),
        tokens=arrays.get("tokens"),
        sizes=arrays.get("sizes"),
        kl=from_arrays(kl) if kl else None,
        shared=shared,
        reads=arrays.get("reads"),
    )
    shape = (len(sensitivity.loss), len(sensitivity.ops))
    rows = (sensitivity.input, sensitivity.weight, *rounding.values(), *second.values(), *shared.values())
    fit = all(array.shape == shape for array in rows)
    of_ops = [*maxabs.values(), *([] if sensitivity.reads is None else [sensitivity.reads])]
    if not fit or any(array.shape != shape[1:] for array in of_ops):
        message = "the arrays do not fit together"
        raise ValueError(message)
    return sensitivity


def _text(arrays: Mapping[str, Any], name: str, allowed: tuple[str, ...]) -> Any:
    """Read a word of a list; files of before 0.2.0 lack it, and mean the first."""
    word = str(arrays.get(name, allowed[0]))
    if word not in allowed:
        message = f"{name} is {word!r}"
        raise ValueError(message)
    return word
