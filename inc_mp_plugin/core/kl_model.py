"""The KL divergence of formats."""

from __future__ import annotations

from dataclasses import dataclass

from inc_mp_plugin.core.cost_model import CostModel


@dataclass(frozen=True)
class KLModel(CostModel):
    """Predicted KL divergence of ops in formats, nats per token: all that a program knows of it.

    The cost of an op in a format is its KL divergence from the model in the base format, to second order in
    the rounding error (see `measure_sensitivity`); costs add up over ops whose errors are independent.
    """
