"""The price of all ops in a lower format, beside which a plan has to be worth it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.everything import Everything
from inc_mp_plugin.core.plan import Interval
from inc_mp_plugin.solver.uncertainty import DEFAULT_CONFIDENCE, predict


def price_everything(
    costs: Costs,
    ops: Sequence[str],
    format_name: str,
    base: str,
    *,
    confidence: float | None = None,
) -> Everything:
    """Predict what all ops cost together in a lower format, and a KV cache in FP8 if the costs have it.

    Args:
        costs: of the ops.
        ops: that may leave the base format.
        format_name: of all ops.
        base: the base format.
        confidence: level of the interval whose upper end is held to a threshold; None holds the prediction.

    Raises:
        InputError: the rounding error of this format was not measured.
    """
    formats, level = dict.fromkeys(ops, format_name), confidence or DEFAULT_CONFIDENCE
    kl = nrmse = kl_interval = nrmse_interval = None
    if costs.kl is not None:
        kl, kl_interval = predict(costs.kl, formats, base, level=level)
    if costs.loss is not None:
        mse, interval = predict(costs.loss, formats, base, level=level)
        nrmse = math.sqrt(mse / costs.loss.loss_ms)
        if interval is not None:
            nrmse_interval = Interval(*(math.sqrt(end / costs.loss.loss_ms) for end in interval))
    return Everything(
        format_name, tuple(ops), kl, kl_interval, nrmse, nrmse_interval, upper=confidence is not None
    )
