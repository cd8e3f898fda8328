"""A model whose plans are measured: the KL divergence of held-out texts, with INC's rounding."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from task import FORMAT
from torch import Tensor, nn

import inc_mp_plugin as mp
from inc_mp_plugin.model.distributions import distributions
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.sensitivity.rounded import rounded
from inc_mp_plugin.sensitivity.rounding import Rounding, observe_rounding

SCALES = mp.Scales("maxabs_arbitrary", "cpu")
Batches = list[dict[str, Tensor]]


def batches_of(rows: Tensor, size: int) -> Batches:
    """Cut samples of token ids into batches."""
    return [{"input_ids": ids} for ids in rows.split(size)]


@dataclass
class Subject:
    """A model, its graph, calibration and held-out batches, and the rounding that plans are measured by."""

    model: nn.Module
    graph: mp.Graph
    calibration: Batches
    heldout: Batches
    rounding: Rounding = field(init=False)
    base: list[Tensor] = field(init=False)
    known: dict[frozenset[str], NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Take the maxabs over the calibration batches, and the distributions of the model as it is.

        The logarithms of all held-out probabilities stay in memory: 4 bytes x tokens x vocabulary.
        """
        rounding = observe_rounding(
            self.model, self.graph, self.calibration, None, scales=SCALES, formats=(FORMAT,)
        )
        assert rounding is not None
        self.rounding = rounding
        with as_measured(self.model), torch.no_grad():
            self.base = [self._log_probabilities(batch) for batch in self.heldout]

    def _log_probabilities(self, batch: dict[str, Tensor]) -> Tensor:
        seen = distributions(self.model, batch)
        return seen.logits[seen.counted].float().log_softmax(-1)

    def kl(self, ops: Collection[str]) -> NDArray[np.float64]:
        """Measure the KL divergence with these ops in FP8, in nats per token of each held-out sample.

        Summed as p (log p - log q) - p + q, whose terms are never negative: nothing cancels.
        """
        key = frozenset(ops)
        if key not in self.known:
            samples = []
            lowered = dict.fromkeys(key, FORMAT)
            with as_measured(self.model), torch.no_grad(), rounded(self.model, self.rounding, lowered):
                for base, batch in zip(self.base, self.heldout, strict=True):
                    other = self._log_probabilities(batch)
                    p, q = base.exp(), other.exp()
                    tokens = (p * (base - other) - p + q).sum(-1)
                    samples.append(tokens.view(len(batch["input_ids"]), -1).mean(1).double())
            self.known[key] = torch.cat(samples).numpy()
        return self.known[key]
