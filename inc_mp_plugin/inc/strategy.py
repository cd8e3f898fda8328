"""`strategy: ip_mse` in INC: the configuration, the algorithm, and their registration.

INC 3 has no registry of strategies; `register_config` and `register_algo` are its two public doors, and
both are used as they are. Importing this file registers.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from neural_compressor.common.base_config import register_config
from neural_compressor.common.utils import FP8_QUANT, Mode
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME, FP8Config
from neural_compressor.torch.utils.utility import algos_mapping, register_algo
from torch import nn

from inc_mp_plugin import pipeline
from inc_mp_plugin.attention import expose_bgemms
from inc_mp_plugin.errors import InputError, unknown
from inc_mp_plugin.experts import expose_experts
from inc_mp_plugin.formats import NOISES
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.graph.capture import QUANTIZABLE
from inc_mp_plugin.inc.backend import enable_on_cpu, forget_models, is_cpu, restore_modules
from inc_mp_plugin.inc.observed import Observed
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import selected
from inc_mp_plugin.inc.settings import NAME, Settings, inc_keys, read, split
from inc_mp_plugin.progress import say
from inc_mp_plugin.report.info import summary
from inc_mp_plugin.sensitivity.scales import Scales
from inc_mp_plugin.solver.planner import check_knobs
from inc_mp_plugin.solver.uncertainty import check_confidence
from inc_mp_plugin.stages import Noise
from inc_mp_plugin.subject import base_format
from inc_mp_plugin.targets import OPTIMUM_HABANA

_OBJECTIVES = ("memory", "theoretical_time")
_OBSERVED = "_ip_mse_observed"
_LOW = {"E4M3": "fp8_e4m3", "E5M2": "fp8_e5m2"}


@register_config(framework_name=FRAMEWORK_NAME, algo_name=NAME, priority=0)
class IPMSEConfig(FP8Config):  # type: ignore[misc]
    """INC configuration of `ip_mse`: the keys of `Settings`, and all of INC's `FP8Config`.

    Example::

        quantize(model, IPMSEConfig(tau=0.01), run_fn=calibrate)
    """

    name = NAME

    def __init__(self, **kwargs: Any) -> None:
        """Tell our keys from INC's and check both; INC's base class insists on the name kwargs.

        Raises:
            InputError: a key that neither `Settings` nor INC's FP8Config knows.
        """
        ours, theirs = split(kwargs)
        _check(Settings.of(ours))
        known = inc_keys()
        for key in theirs:
            if key not in known:
                # INC ignores what it does not know: a misspelt tau would go unnoticed.
                raise InputError(unknown("IPMSEConfig key", key, known | set(Settings.__slots__)))
        super().__init__(**theirs)
        self.ours = ours

    def save_temp_json_file(self) -> None:
        """Write nothing: INC would leave a temporary file behind."""


def register() -> None:
    """Make `ip_mse` known to INC.

    Importing this file does it; the call is for scripts, to say so in a line of their own.
    """


_inc_entry = algos_mapping[FP8_QUANT]


@register_algo(NAME)  # type: ignore[untyped-decorator]
def ip_mse_entry(
    model: nn.Module,
    configs_mapping: Mapping[Any, Any],
    mode: Mode = Mode.QUANTIZE,
    run_fn: Callable[..., Any] | None = None,
    run_args: tuple[Any, ...] | None = None,
    **_: Any,
) -> nn.Module:
    """What INC calls for prepare, for convert, and for quantize: both, with `run_fn` between.

    Raises:
        InputError: a setting is wrong, or calibration never ran the model.
    """
    config = next(iter(configs_mapping.values()))
    if mode == Mode.PREPARE:
        return _prepare(model, config, configs_mapping)
    if mode == Mode.CONVERT:
        return _convert(model, config, configs_mapping)
    if run_fn is None:
        message = "quantize with ip_mse needs run_fn, a function that runs calibration batches"
        raise InputError(message)
    prepared = _prepare(model, config, configs_mapping)
    run_fn(prepared, *(run_args or ()))
    return _convert(prepared, config, configs_mapping)


@register_algo(FP8_QUANT)  # type: ignore[untyped-decorator]
def fp8_entry(
    model: nn.Module, configs_mapping: Mapping[Any, Any], mode: Mode = Mode.QUANTIZE, **kwargs: Any
) -> nn.Module:
    """INC's own FP8 algorithm, unless its configuration says `strategy: ip_mse`."""
    config = next(iter(configs_mapping.values()))
    if getattr(config, "strategy", None) == NAME:
        planned: nn.Module = ip_mse_entry(model, configs_mapping, mode, **kwargs)
        return planned
    converted: nn.Module = _inc_entry(model, configs_mapping, mode=mode, **kwargs)
    return converted


def _check(settings: Settings) -> None:
    check_knobs(settings.tau, settings.gain_fraction)
    if settings.objective not in _OBJECTIVES:
        raise InputError(unknown("objective", settings.objective, _OBJECTIVES))
    if settings.device not in ACCELERATORS:
        raise InputError(unknown("device", settings.device, ACCELERATORS))
    if settings.noise not in NOISES:
        raise InputError(unknown("noise", settings.noise, NOISES))
    if settings.confidence is not None:
        check_confidence(settings.confidence)


def _prepare(model: nn.Module, config: Any, mapping: Mapping[Any, Any]) -> nn.Module:
    enable_on_cpu()
    settings, inc = read(config, base_format(model))
    _check(settings)  # before calibration, which may take long
    _noise(settings, inc)
    expose_experts(model)
    if settings.objective != "memory":  # no bgemm gains memory, so attention may stay as it is
        expose_bgemms(model)
    forget_models()
    prepared = _run_inc(model, {**inc, "mode": "MEASURE"}, mapping, Mode.PREPARE)
    observed = Observed(settings.samples)
    observed.watch(prepared)
    vars(prepared)[_OBSERVED] = observed
    return prepared


def _convert(model: nn.Module, config: Any, mapping: Mapping[Any, Any]) -> nn.Module:
    settings, inc = read(config, base_format(model))
    observed: Observed | None = vars(model).pop(_OBSERVED, None)
    if observed is None:
        message = "convert with ip_mse needs the model that prepare returned and calibration ran"
        raise InputError(message)
    observed.stop(model)
    restore_modules(model)
    modules = {name: type(module).__name__ for name, module in model.named_modules() if name}
    candidates = selected(modules, inc, "cpu" if is_cpu() else "hpu")
    plan = pipeline.tune(
        model,
        observed.batches,
        tau=settings.tau,
        gain_fraction=settings.gain_fraction,
        objective=settings.objective,
        confidence=settings.confidence,
        noise=_noise(settings, inc),
        formats=(_format(inc),),
        device=settings.device,
        loss_fn=settings.loss_fn,
        allowed=candidates,
        out=f"{inc['dump_stats_path']}_{NAME}",
    )
    for line in summary(plan):
        say(line)
    # Modules of which the plan says nothing (caches, softmax) stay as the user's own lists have them;
    # a module that INC could swap but calibration never ran would raise at its first call.
    wanted = set(plan.quantized)
    blocked = [n for n in candidates if modules[n] in QUANTIZABLE and n not in wanted]
    inc["blocklist"]["names"] += compress(blocked)
    del model.quantizer  # INC's, which still points at the file of prepare
    try:
        return _run_inc(model, {**inc, "mode": "QUANTIZE"}, mapping, Mode.CONVERT)
    finally:
        forget_models()


def _format(inc: Mapping[str, Any]) -> str:
    return _LOW[inc.get("fp8_config", "E4M3")]


def _noise(settings: Settings, inc: Mapping[str, Any]) -> Noise:
    """How rounding is priced; on a Gaudi, measured noise takes the scales of the settings' device."""
    if settings.noise != "measured":
        return Noise(settings.noise)
    method = str(inc.get("scale_method", OPTIMUM_HABANA.scale_methods[0])).lower()
    return Noise("measured", Scales(method, "cpu" if is_cpu() else settings.device), (_format(inc),))


def _run_inc(model: nn.Module, content: dict[str, Any], mapping: Mapping[Any, Any], mode: Mode) -> nn.Module:
    """Run INC's own algorithm with a JSON file of INC's keys only."""
    with tempfile.TemporaryDirectory(prefix="inc_mp_plugin-") as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(content))
        config = FP8Config.from_json_file(str(path))
        result: nn.Module = _inc_entry(model, dict.fromkeys(mapping, config), mode=mode)
    return result
