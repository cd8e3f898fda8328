"""`strategy: ip_mse` in INC: the configuration, the algorithm, and their registration.

INC 3 has no registry of strategies; `register_config` and `register_algo` are its two public doors, and
both are used as they are. Calibration that ends in another process, and loading, pass through neither:
there a function of INC's is wrapped. Importing this file registers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from neural_compressor.common.base_config import register_config
from neural_compressor.common.utils import FP8_QUANT, Mode
from neural_compressor.torch.algorithms import fp8_quant
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME, FP8Config
from neural_compressor.torch.utils.utility import algos_mapping, register_algo
from torch import nn

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.inc.backend import enabled_on_cpu
from inc_mp_plugin.inc.loading import with_modules_of
from inc_mp_plugin.inc.versions import autotune_forgets_the_best, has_legacy_tuning
from inc_mp_plugin.runtime.progress import warn
from inc_mp_plugin.strategy import flow
from inc_mp_plugin.strategy.choices import check_settings
from inc_mp_plugin.strategy.settings import NAME, Settings, grid, inc_keys, split


@register_config(framework_name=FRAMEWORK_NAME, algo_name=NAME, priority=0)
class IPMSEConfig(FP8Config):  # type: ignore[misc]
    """INC configuration of `ip_mse`: the keys of `Settings`, and all of INC's `FP8Config`.

    A key of ours may be a list: INC's `autotune` then tries its values, the fastest model first.

    Example::

        quantize(model, IPMSEConfig(tau=0.01), run_fn=calibrate)
    """

    name = NAME
    __hash__ = None  # type: ignore[assignment]  # it can be changed, and is compared by content

    def __init__(self, **kwargs: Any) -> None:
        """Tell our keys from INC's and check both; INC's base class insists on the name kwargs.

        Raises:
            InputError: a key that neither `Settings` nor INC's FP8Config knows.
        """
        ours, theirs = split(kwargs)
        for one in grid(ours):
            check_settings(Settings.of(one))
        known = inc_keys()
        for key in theirs:
            if key not in known:
                # INC ignores what it does not know: a misspelt tau would go unnoticed.
                raise InputError(unknown("IPMSEConfig key", key, known | set(Settings.__slots__)))
        super().__init__(**theirs)
        self.ours = ours
        self.theirs = theirs

    def expand(self) -> list[IPMSEConfig]:
        """One configuration for each combination of values, the fastest model first."""
        expanded = [type(self)(**self.theirs, ip_mse=one) for one in grid(self.ours)]
        if autotune_forgets_the_best():
            warn(
                "This version of INC returns None if none is good enough, unless TuningConfig is given "
                f"max_trials={len(expanded)}, the number of configurations."
            )
        return expanded

    def __iter__(self) -> Iterator[IPMSEConfig]:
        """Itself alone: INC's autotune goes through what may be a list of configurations."""
        return iter((self,))

    def __eq__(self, other: object) -> bool:
        """Compare keys; INC's own comparison knows none of them, and autotune skips what is equal."""
        return isinstance(other, IPMSEConfig) and (self.ours, self.theirs) == (other.ours, other.theirs)

    def save_temp_json_file(self) -> None:
        """Write nothing: INC would leave a temporary file behind."""

    @classmethod
    def get_config_set_for_tuning(cls) -> IPMSEConfig:
        """Thresholds from fast to careful, for INC's `autotune`."""
        return cls(tau=[0.03, 0.01, 0.003])


def register() -> None:
    """Make `ip_mse` known to INC.

    Importing this file does it; the call is for scripts, to say so in a line of their own.
    """


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """INC's own function, also where an earlier import of this file has wrapped it."""
    original: Callable[..., Any] = getattr(function, "of_inc", function)
    return original


_inc_entry = _unwrapped(algos_mapping[FP8_QUANT])
_inc_save_calib_result = _unwrapped(fp8_quant.save_calib_result)
_inc_load = _unwrapped(fp8_quant.load)


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
        return flow.prepare(_inc_entry, model, config, configs_mapping)
    if mode == Mode.CONVERT:
        return flow.convert(_inc_entry, model, config, configs_mapping)
    if run_fn is None:
        message = "quantize with ip_mse needs run_fn, a function that runs calibration batches"
        raise InputError(message)
    prepared = flow.prepare(_inc_entry, model, config, configs_mapping)
    with flow.calibrated(prepared):
        run_fn(prepared, *(run_args or ()))
    return flow.convert(_inc_entry, prepared, config, configs_mapping)


@register_algo(FP8_QUANT)  # type: ignore[untyped-decorator]
def fp8_entry(
    model: nn.Module, configs_mapping: Mapping[Any, Any], mode: Mode = Mode.QUANTIZE, **kwargs: Any
) -> nn.Module:
    """INC's own FP8 algorithm, unless its configuration says `strategy: ip_mse`."""
    config = next(iter(configs_mapping.values()))
    strategy = getattr(config, "strategy", None)
    if strategy != NAME and str(strategy).lower().replace("-", "_") == NAME:
        raise InputError(unknown("strategy", str(strategy), [NAME]))  # INC would quantize everything
    if strategy == NAME or hasattr(config, NAME):
        planned: nn.Module = ip_mse_entry(model, configs_mapping, mode, **kwargs)
        return planned
    converted: nn.Module = _inc_entry(model, configs_mapping, mode=mode, **kwargs)
    return converted


def save_calib_result(model: nn.Module) -> None:
    """INC's end of a calibration, by `finalize_calibration`; the sensitivities are kept, too."""
    with enabled_on_cpu():
        _inc_save_calib_result(model)
    flow.finalize(model)


def load(model_name_or_path: str, format: str = "huggingface", device: str = "hpu", **kwargs: Any) -> Any:
    """INC's loading, into a model that has the modules that were saved."""
    kwargs = with_modules_of(model_name_or_path, kwargs)
    with enabled_on_cpu():
        return _inc_load(model_name_or_path, format=format, device=device, **kwargs)


if has_legacy_tuning():
    from inc_mp_plugin.strategy.legacy import register_legacy

    register_legacy()

fp8_entry.of_inc = _inc_entry
save_calib_result.of_inc = _inc_save_calib_result  # type: ignore[attr-defined]
load.of_inc = _inc_load  # type: ignore[attr-defined]
# INC looks both up when they are called.
fp8_quant.save_calib_result = save_calib_result
fp8_quant.load = load
