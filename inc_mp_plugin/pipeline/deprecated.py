"""Names of version 0.1.0 that are public for one more version, and their translation into new ones."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.literals import NoiseModel, TimedDevice
from inc_mp_plugin.gain.bench import TimingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from inc_mp_plugin.scales.methods import Scales


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock of measured time: now `mp.TimingSettings(device=..., every_group=...)`."""

    device: TimedDevice
    settings: TimingSettings
    every_group: bool = False


@dataclass(frozen=True, slots=True)
class Noise:
    """The price of rounding: now `noise="measured", scales=...` of `mp.tune`."""

    model: NoiseModel = "uniform"
    scales: Scales | None = None
    formats: tuple[str, ...] = ()


def timing_from(
    timing: TimingSettings | Mapping[str, Any] | None, clock: Clock | None
) -> TimingSettings | Mapping[str, Any] | None:
    """Translate a clock into settings; if both are given, the settings count."""
    if clock is None or timing is not None:
        return timing
    _warn("clock=mp.Clock(...)", "timing=mp.TimingSettings(device=..., every_group=...)")
    return replace(clock.settings, device=clock.device, every_group=clock.every_group)


def noise_from(noise: NoiseModel | Noise | None, scales: Scales | None) -> tuple[NoiseModel, Scales | None]:
    """Translate a noise into the name of the model and the scales of measured noise."""
    if not isinstance(noise, Noise):
        return noise or "uniform", scales
    _warn("noise=mp.Noise(...)", 'noise="measured", scales=...')
    return noise.model, noise.scales or scales


def serving_from(serving: Serving | None, plain: Serving) -> Serving:
    """Return the settings of serving: those of the keywords, unless the old argument is given."""
    if serving is None:
        return plain
    _warn("serving=mp.Serving(...)", "kv_cache=, attention= and reuse_cache=")
    return serving


def _warn(old: str, new: str) -> None:
    message = f"{old} will be removed in version 0.3; give {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=4)
