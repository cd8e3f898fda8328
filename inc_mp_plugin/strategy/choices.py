"""Checks of a user's settings, and the format and scales that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.formats import FORMATS, NOISES
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.numbers import is_number
from inc_mp_plugin.core.plan import VALUE_METHODS
from inc_mp_plugin.gain.accelerators import ACCELERATORS, peak
from inc_mp_plugin.inc.backend import is_cpu
from inc_mp_plugin.inc.keys import NAME
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.solver.uncertainty import check_confidence
from inc_mp_plugin.strategy.settings import Settings
from inc_mp_plugin.targets import OPTIMUM_HABANA

_OBJECTIVES = ("memory", "theoretical_time")
_FP8 = {fp8.inc_name: fp8.name for fp8 in FORMATS.values() if fp8.inc_name}


def check_settings(settings: Settings) -> None:
    """Refuse settings that no plan could be made for.

    Raises:
        InputError: one is missing, unknown or out of range.
    """
    check_knobs(settings.tau, settings.gain_fraction, settings.budget)
    if not isinstance(settings.samples, int) or isinstance(settings.samples, bool) or settings.samples < 1:
        message = f"samples is {settings.samples!r}; it must be a whole number above 0, such as 64"
        raise InputError(message)
    if settings.loss_fn is not None and not callable(settings.loss_fn):
        message = f"loss_fn is {settings.loss_fn!r}; it must be a function of model and batch"
        raise InputError(message)
    if settings.strategy not in (NAME, *VALUE_METHODS):
        raise InputError(unknown("strategy", str(settings.strategy), (NAME, *VALUE_METHODS)))
    if settings.objective not in _OBJECTIVES:
        raise InputError(unknown("objective", settings.objective, _OBJECTIVES))
    if settings.device not in ACCELERATORS:
        raise InputError(unknown("device", settings.device, ACCELERATORS))
    if settings.noise not in NOISES:
        raise InputError(unknown("noise", settings.noise, NOISES))
    if settings.confidence is not None:
        if not is_number(settings.confidence):
            message = f"confidence is {settings.confidence!r}; it must be a number, such as 0.95"
            raise InputError(message)
        check_confidence(settings.confidence)
    Serving(attention=settings.attention, reuse_cache=settings.reuse_cache)


def check_prices(settings: Settings, base: str, inc: Mapping[str, Any]) -> None:
    """Refuse an objective without a price for a model's format, or measured noise of unknown scales.

    Args:
        settings: keys of ours.
        base: format of the model.
        inc: keys of INC's.

    Raises:
        InputError: modelled time on a device without a peak for the format, or measured noise of scales
            whose arithmetic is not known here.
    """
    if settings.objective == "theoretical_time":
        peak(settings.device, base)
    if settings.noise == "measured":
        scales_of(settings, inc)


def format_of(inc: Mapping[str, Any]) -> str:
    """Return the FP8 format that INC's keys ask for."""
    return _FP8[inc.get("fp8_config", "E4M3")]


def scales_of(settings: Settings, inc: Mapping[str, Any]) -> Scales:
    """Return the scales that INC will use for FP8; on a Gaudi, those of the settings' device.

    Raises:
        InputError: the arithmetic of the scale method is not known here.
    """
    method = str(inc.get("scale_method", OPTIMUM_HABANA.scale_methods[0])).lower()
    return Scales(method, "cpu" if is_cpu() else settings.device)


def known_scales(settings: Settings, inc: Mapping[str, Any]) -> Scales | None:
    """Return the scales that INC will use for FP8; None where their arithmetic is not known here."""
    try:
        return scales_of(settings, inc)
    except InputError:  # one of INC's many other methods, or modelled time of another device
        return None
