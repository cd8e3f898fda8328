"""A measured KL divergence from the model in its base format, sample by sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inc_mp_plugin.core.literals import Per
    from inc_mp_plugin.core.sensitivity import FloatArray

_LARGEST = 700.0  # of an exponent: e to this is still a number


@dataclass(frozen=True)
class Divergence:
    """KL divergence of predicted distributions from those of the base model, over the positions that count.

    All arrays have shape (samples,), one value per sample: `kl` is its sum over positions, nats; `positions`
    counts them; `flips` are those whose most likely class is another one than the base model's. `nll` is the
    sum of -log p of the labels, nats, `base_nll` that of the base model, and `labels` counts them. `p99` is
    the 99th percentile over all positions, nats.
    """

    kl: FloatArray
    positions: FloatArray
    flips: FloatArray
    nll: FloatArray
    base_nll: FloatArray
    labels: FloatArray
    p99: float

    @property
    def mean(self) -> float:
        """Mean over all positions, nats."""
        return float(self.kl.sum() / self.positions.sum())

    @property
    def flip_share(self) -> float:
        """Share of the positions whose most likely class is another one."""
        return float(self.flips.sum() / self.positions.sum())

    @property
    def per(self) -> Per:
        """Name of a position: a token, or a sample where each has one."""
        return "sample" if float(self.positions.max()) == 1.0 else "token"

    @property
    def perplexity_ratio(self) -> float | None:
        """Perplexity of the labels, divided by the base model's; None without labels."""
        labels = float(self.labels.sum())
        if not labels:
            return None
        return math.exp(min(float((self.nll - self.base_nll).sum()) / labels, _LARGEST))

    def to_arrays(self, key: str) -> dict[str, Any]:
        """Name the values under a key, for a file of arrays."""
        return {f"{key} {field.name}": getattr(self, field.name) for field in fields(self)}


def from_arrays(arrays: Mapping[str, Any], key: str) -> Divergence | None:
    """Read what `Divergence.to_arrays` named; None where it is not there."""
    names = [field.name for field in fields(Divergence)]
    if any(f"{key} {name}" not in arrays for name in names):
        return None
    values = {name: arrays[f"{key} {name}"] for name in names}
    return Divergence(**{**values, "p99": float(values["p99"])})
