"""All ops in a lower format: what that is predicted to cost."""

from __future__ import annotations

from dataclasses import dataclass

from inc_mp_plugin.core.plan import Interval


@dataclass(frozen=True, slots=True)
class Everything:
    """All ops that may leave the base format in one lower format, and the predicted cost.

    `kl` is the KL divergence in nats per token, `nrmse` the normalized RMSE of the loss, each with its
    interval; None where it was not priced. `upper` tells that the upper ends of the intervals are held to
    the thresholds, as the plan's `confidence` asks for.
    """

    format: str
    ops: tuple[str, ...]
    kl: float | None
    kl_interval: Interval | None
    nrmse: float | None
    nrmse_interval: Interval | None
    upper: bool = False
