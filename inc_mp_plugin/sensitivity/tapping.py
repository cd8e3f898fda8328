"""Settings of the taps on a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor, nn

from inc_mp_plugin.core.graph import Graph

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors


@dataclass(frozen=True, slots=True)
class Tapping:
    """Settings of the taps on a model, for one batch.

    Attributes:
        model: to be hooked; experts are exposed in it.
        graph: its ops.
        size: number of rows: the samples of the batch, or 1 for all of them together.
        rounding: rounding errors q in some formats; without, only z counts.
        maxabs: of the ops' inputs over all batches; None if that of this batch is to be noted.
        tokens: numbers of tokens that a sample may have.
        inputs_only: the gradients of weights are left out.
        together: see `add_inputs`.
        blocks: names of those that run once more for their gradients; see `Replays`.
        apart: names of ops that are tapped apart.
    """

    model: nn.Module
    graph: Graph
    size: int
    rounding: Errors | None = None
    maxabs: Mapping[tuple[str, int], Tensor] | None = None
    tokens: Collection[int] = ()
    inputs_only: bool = False
    together: bool = False
    blocks: Sequence[str] = ()
    apart: Collection[str] = ()

    @property
    def formats(self) -> tuple[str, ...]:
        """Formats whose rounding errors are measured."""
        return self.rounding.formats if self.rounding else ()

    @property
    def looks(self) -> bool:
        """The taps note the largest magnitudes of inputs."""
        return self.maxabs is None and not self.inputs_only
