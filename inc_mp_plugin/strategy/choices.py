"""Checks of a user's settings, and the format and scales that follow from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import FORMATS
from inc_mp_plugin.inc.backend import is_cpu
from inc_mp_plugin.pipeline.keys_in_memory import recipe_of
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.scales.methods import Scales
from inc_mp_plugin.stages.gains import check_prices, request_of
from inc_mp_plugin.stages.job import Job
from inc_mp_plugin.strategy.settings import Settings
from inc_mp_plugin.targets import CPU_QDQ, OPTIMUM_HABANA, check_scale_method
from inc_mp_plugin.targets.target import Target

_FP8 = {fp8.inc_name: fp8.name for fp8 in FORMATS.values() if fp8.inc_name}


def check_settings(settings: Settings, base: str = "bf16", format_name: str = "fp8_e4m3") -> Job:
    """Refuse settings that no plan could be made for, by the rules of a recipe; return their job.

    Args:
        settings: keys of ours.
        base: format of the model.
        format_name: the lower format.

    Raises:
        InputError: one is missing, unknown or out of range.
    """
    if not isinstance(settings.samples, int) or isinstance(settings.samples, bool) or settings.samples < 1:
        message = f"samples is {settings.samples!r}; it must be a whole number above 0, such as 64"
        raise InputError(message)
    if settings.loss_fn is not None and not callable(settings.loss_fn):
        message = f"loss_fn is {settings.loss_fn!r}; it must be a function of model and batch"
        raise InputError(message)
    keys = {
        **settings.of_a_recipe,
        "formats": (format_name,),
        "kv_cache": settings.kv_cache or "bf16",
        "targets": all_targets(settings),
    }
    job = job_of(recipe_of(keys, base))
    job = replace(job, request=job.script_request)
    if job.objective == "roofline":
        request_of(job)
    return job


def check_with_model(settings: Settings, base: str, inc: Mapping[str, Any]) -> None:
    """Refuse settings that no plan could be made for beside a model's format and INC's keys.

    Args:
        settings: keys of ours.
        base: format of the model.
        inc: keys of INC's.

    Raises:
        InputError: a setting is wrong, time cannot be modelled or measured, or losses are to be measured
            or predicted with scales whose arithmetic is not known here.
    """
    job = check_settings(settings, base, format_of(inc))
    if job.timing is not None and job.timing.device == "cpu":
        message = (
            "time would be measured on a CPU, which only emulates FP8; give timing={'device': 'hpu'} or "
            "'cuda', or objective='roofline', which models time"
        )
        raise InputError(message)
    check_prices(job)
    if job.noise == "measured" or settings.validation is not None:
        scales = scales_of(settings, inc)
        if settings.validation is not None and scales.device == "cpu":
            check_scale_method(CPU_QDQ, scales.method)


def target_here() -> Target:
    """Return the consumer that INC is on this machine."""
    return CPU_QDQ if is_cpu() else OPTIMUM_HABANA


def all_targets(settings: Settings) -> Any:
    """List the consumer here and the targets of the settings; what is no list stays as it is."""
    if not isinstance(settings.targets, (list, tuple)):
        return settings.targets
    here = target_here().name
    return (here, *(name for name in settings.targets if name != here))


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
