"""`strategy: ip_mse` in INC: the algorithm, and its registration.

INC 3 has no registry of strategies; `register_config` and `register_algo` are its two public doors, and
both are used as they are. Calibration that ends in another process, and loading, pass through neither:
there a function of INC's is wrapped. Importing this file changes nothing in INC; `register` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from neural_compressor.common.base_config import register_config
from neural_compressor.common.utils import FP8_QUANT, Mode
from neural_compressor.torch.algorithms import fp8_quant
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils.utility import algos_mapping, register_algo
from torch import nn

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.literals import Strategy
from inc_mp_plugin.inc.backend import enabled_on_cpu
from inc_mp_plugin.inc.keys import NAME
from inc_mp_plugin.inc.loading import with_modules_of
from inc_mp_plugin.inc.versions import has_legacy_tuning
from inc_mp_plugin.strategy import flow
from inc_mp_plugin.strategy.config import IPMSEConfig


def register() -> None:
    """Make `ip_mse` known to INC: its configuration, its algorithm, and what INC calls around both.

    A second call changes nothing.
    """
    if algos_mapping.get(NAME) is ip_mse_entry:
        return
    register_config(framework_name=FRAMEWORK_NAME, algo_name=NAME, priority=0)(IPMSEConfig)
    register_algo(NAME)(ip_mse_entry)
    register_algo(FP8_QUANT)(fp8_entry)
    # INC looks both up when they are called.
    fp8_quant.save_calib_result = save_calib_result
    fp8_quant.load = load
    if has_legacy_tuning():
        from inc_mp_plugin.strategy.legacy import register_legacy

        register_legacy()


def _unwrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return INC's own function, also where an earlier import of this file has wrapped it."""
    original: Callable[..., Any] = getattr(function, "of_inc", function)
    return original


_inc_entry = _unwrapped(algos_mapping[FP8_QUANT])
_inc_save_calib_result = _unwrapped(fp8_quant.save_calib_result)
_inc_load = _unwrapped(fp8_quant.load)


def ip_mse_entry(
    model: nn.Module,
    configs_mapping: Mapping[Any, Any],
    mode: Mode = Mode.QUANTIZE,
    run_fn: Callable[..., Any] | None = None,
    run_args: tuple[Any, ...] | None = None,
    **_: Any,
) -> nn.Module:
    """Prepare a model for INC, convert it, or quantize it: prepare and convert, with `run_fn` between.

    Args:
        model: changed in place.
        configs_mapping: as INC gives it to its algorithms; its first configuration counts.
        mode: prepare, convert or quantize.
        run_fn: runs calibration batches through the model; needed to quantize, and for nothing else.
        run_args: what `run_fn` is given after the model.

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


def fp8_entry(
    model: nn.Module, configs_mapping: Mapping[Any, Any], mode: Mode = Mode.QUANTIZE, **kwargs: Any
) -> nn.Module:
    """Run INC's own FP8 algorithm, or `ip_mse` if the configuration's `strategy` is one of ours.

    A configuration with a key `ip_mse` runs `ip_mse`, too.

    Args:
        model: as INC gives it to its algorithms.
        configs_mapping: as INC gives it to its algorithms.
        mode: prepare, convert or quantize.
        kwargs: passed on to the algorithm.

    Raises:
        InputError: the strategy is another spelling of one of these.
    """
    config = next(iter(configs_mapping.values()))
    strategy = getattr(config, "strategy", None)
    ours = get_args(Strategy)
    if strategy not in ours and str(strategy).lower().replace("-", "_") in ours:
        raise InputError(unknown("strategy", str(strategy), ours))  # INC would quantize everything
    if strategy in ours or hasattr(config, NAME):
        planned: nn.Module = ip_mse_entry(model, configs_mapping, mode, **kwargs)
        return planned
    converted: nn.Module = _inc_entry(model, configs_mapping, mode=mode, **kwargs)
    return converted


def save_calib_result(model: nn.Module) -> None:
    """End a calibration as INC does, by `finalize_calibration`; the sensitivities are kept, too."""
    with enabled_on_cpu():
        _inc_save_calib_result(model)
    flow.finalize(model)


def load(
    model_name_or_path: str,
    format: str = "huggingface",  # noqa: A002 - as INC names it
    device: str = "hpu",
    **kwargs: Any,
) -> Any:
    """Load a model as INC does, into one that has the modules that were saved.

    Args:
        model_name_or_path: as in INC's `load`.
        format: as in INC's `load`.
        device: as in INC's `load`.
        kwargs: other keywords of INC's `load`.
    """
    kwargs = with_modules_of(model_name_or_path, kwargs)
    with enabled_on_cpu():
        return _inc_load(model_name_or_path, format=format, device=device, **kwargs)


fp8_entry.of_inc = _inc_entry  # type: ignore[attr-defined]
save_calib_result.of_inc = _inc_save_calib_result  # type: ignore[attr-defined]
load.of_inc = _inc_load  # type: ignore[attr-defined]
