"""KL divergence in words of a model: how often the most likely word changes, by what was measured on it."""

from __future__ import annotations

import math
from collections.abc import Sequence

from inc_mp_plugin.core.results import KLPoint

_FURTHEST = 4.0  # times beyond the measured KL divergences, or below


def threshold_in_words(kl: float, points: Sequence[KLPoint]) -> str:
    """Say at what rate the most likely word changes at a KL divergence; nothing where that was not measured.

    For small changes of the logits, of size e, the KL divergence is in proportion to e^2 and the share of
    positions whose largest logits change places to e. So the share is c sqrt(KL), with c = sum of the shares
    / sum of the roots over the measured plans.

    Args:
        kl: nats per position.
        points: as measured on the model.

    Example:
        >>> measured = ((0.0025, 0.05), (0.0036, 0.06))
        >>> points = [KLPoint(None, None, kl, None, flips, 0.0) for kl, flips in measured]
        >>> threshold_in_words(0.0025, points)
        '2 measured plans, a KL of 0.0025 nats per token changes the most likely word of 1 token in 20 here'
        >>> threshold_in_words(0.1, points)
        ''
    """
    measured = [point for point in points if point.measured > 0]
    if not measured or not any(point.flips for point in measured):
        return ""
    values = [point.measured for point in measured]
    if not min(values) / _FURTHEST <= kl <= max(values) * _FURTHEST:
        return ""
    rate = sum(point.flips for point in measured) / sum(map(math.sqrt, values))
    share, per = min(rate * math.sqrt(kl), 1.0), measured[0].per
    what = "word" if per == "token" else "class"
    plans = f"{len(measured)} measured plan{'s' if len(measured) > 1 else ''}"
    often = f"changes the most likely {what} of 1 {per} in {1 / share:.0f} here"
    return f"{plans}, a KL of {kl:.6g} nats per {per} {often}"
