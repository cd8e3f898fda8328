"""What formats cost, by every yardstick that was measured."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

from inc_mp_plugin.core.cost_model import CostModel
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.literals import NoiseModel, Yardstick
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.sensitivity import Sensitivity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Costs:
    """Predicted loss MSE and KL divergence of ops in formats: all that a program knows of a model.

    Attributes:
        sensitivity: of the loss, of the KL divergence, or of both.
        noise: as in `CostModel`.
        cached: as in `CostModel`.
    """

    sensitivity: Sensitivity
    noise: NoiseModel = "uniform"
    cached: frozenset[str] = frozenset()

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops that may leave the base format."""
        return self.sensitivity.ops

    @cached_property
    def loss(self) -> LossModel | None:
        """The loss MSE; None if it was not measured."""
        if self.sensitivity.yardstick != "loss":
            return None
        return LossModel(self.sensitivity, self.noise, self.cached)

    @cached_property
    def kl(self) -> KLModel | None:
        """The KL divergence; None if it was not measured."""
        kl = self.sensitivity if self.sensitivity.yardstick == "kl" else self.sensitivity.kl
        return None if kl is None else KLModel(kl, self.noise, self.cached)

    @property
    def measured_loss(self) -> LossModel:
        """The loss MSE.

        Raises:
            InputError: it was not measured.
        """
        self.by("loss")
        return self.loss or LossModel(self.sensitivity)

    def by(self, yardstick: Yardstick) -> CostModel:
        """Return the costs by a yardstick.

        Raises:
            InputError: it was not measured.
        """
        model = self.loss if yardstick == "loss" else self.kl
        if model is None:
            key, name = ("tau", "loss") if yardstick == "loss" else ("kl", "KL divergence")
            message = (
                f"the sensitivities of the {name} were not measured; `inc-mp tune` with {key} or "
                f"constraint={yardstick} measures them"
            )
            raise InputError(message)
        return model

    def of(self, names: Collection[str]) -> Costs:
        """Keep these ops only; the others then stay in their base format."""
        return replace(self, sensitivity=self.sensitivity.of(names))

    def take(self, rows: NDArray[np.int64]) -> Costs:
        """Keep these rows of the sensitivity only; one may be taken several times."""
        return replace(self, sensitivity=self.sensitivity.take(rows))


def costs_of(costs: Sensitivity | CostModel | Costs) -> Costs:
    """Return the costs; sensitivities are priced by the paper's noise (eq. 16 to 18)."""
    if isinstance(costs, Costs):
        return costs
    if isinstance(costs, Sensitivity):
        return Costs(costs)
    return Costs(costs.sensitivity, costs.noise, costs.cached)
