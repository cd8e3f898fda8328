"""The few places where INC's own modules are touched: its tables, its globals, its entry point.

Whatever of INC is private is here and nowhere else; last checked with INC 3.5 to 3.10.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor, nn, no_grad

_ADDED_ON_CPU = {"Matmul": "matmul", "FalconLinear": "linear"}
# Attributes of INC's configuration objects that are no keys of its JSON.
_NO_KEYS = {"_json_file", "non_tunable_params", "params_list", "model_path"}


def device_table(device: str) -> Mapping[str, Any]:
    """Return INC's table of classes it can swap on a device, {class name: ModuleInfo}.

    The Gaudi table is a constant of INC's, there on any machine. The CPU's table is completed with the
    classes that `enabled_on_cpu` adds.
    """
    from neural_compressor.torch.algorithms.fp8_quant._core import patching_common
    from neural_compressor.torch.algorithms.fp8_quant.model_configs import PATCHED_MODULE_TABLE

    if device == "cpu":
        return {**PATCHED_MODULE_TABLE["cpu"], **_added_on_cpu()}
    table: Mapping[str, Any] = patching_common._mod_default_dict
    return table


def _added_on_cpu() -> dict[str, Any]:
    from neural_compressor.torch.algorithms.fp8_quant._quant_common import helper_modules
    from neural_compressor.torch.algorithms.fp8_quant.model_configs import ModuleInfo

    patched = {"matmul": helper_modules.PatchedMatmul, "linear": helper_modules.PatchedLinear}
    return {kind: ModuleInfo(form, patched[form]) for kind, form in _ADDED_ON_CPU.items()}


def _default_types() -> list[str]:
    """Return the classes of `FP8Config`'s default allow list, which INC fills from its CPU table on import.

    The list is INC's own: a change of it changes the default.
    """
    import inspect

    from neural_compressor.torch.quantization.config import FP8Config

    types: list[str] = inspect.signature(FP8Config.__init__).parameters["allowlist"].default["types"]
    return types


def completed_on_cpu(types: Iterable[str]) -> list[str]:
    """Return an allow list's classes; INC's default list gets the classes that `enabled_on_cpu` adds."""
    allowed, default = list(types), set(_default_types())
    if {*allowed, *_ADDED_ON_CPU} != {*default, *_ADDED_ON_CPU}:
        return allowed
    return [*allowed, *(kind for kind in _ADDED_ON_CPU if kind not in allowed)]


@contextmanager
def enabled_on_cpu() -> Iterator[None]:
    """Let INC quantize attention products (and Falcon's linear class) on a CPU, as it does on Gaudi.

    INC has the patched classes, its CPU table leaves them out, and so does the default allow list. All is as
    INC has it afterwards: a class of the user's own may be called Matmul.
    """
    from neural_compressor.torch.algorithms.fp8_quant.model_configs import (
        PATCHED_MODULE_TABLE,
        PATCHED_MODULE_TYPES_TABLE,
        ModuleType,
    )

    forms = {"linear": ModuleType(1, ["weight"], 1, False), "matmul": ModuleType(2, [], 1, False)}
    additions: list[tuple[dict[str, Any], Mapping[str, Any]]] = [
        (PATCHED_MODULE_TABLE["cpu"], _added_on_cpu()),
        (PATCHED_MODULE_TYPES_TABLE["cpu"], forms),
    ]
    allowed = _default_types()
    kinds = [kind for kind in _ADDED_ON_CPU if kind not in allowed]
    added = [(table, {k: v for k, v in new.items() if k not in table}) for table, new in additions]
    try:
        allowed.extend(kinds)
        for table, new in added:
            table.update(new)
        yield
    finally:
        allowed[:] = [kind for kind in allowed if kind not in kinds]
        for table, new in added:
            for key in new:
                table.pop(key, None)


def forget_models() -> None:
    """Clear INC's module globals, which keep every module it ever patched alive.

    Right before prepare and after convert, never in between.
    """
    from neural_compressor.torch.algorithms.fp8_quant._core.patching_common import (
        parent_child_mod_dict,
    )
    from neural_compressor.torch.algorithms.fp8_quant._core.save_measure import gmod_list
    from neural_compressor.torch.algorithms.fp8_quant.model_configs import IMOD_DICT

    for container in (IMOD_DICT, parent_child_mod_dict, gmod_list):
        container.clear()


def refused_values(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Find the keys of a file whose values INC's own parser refuses, with the values that it allows."""
    from neural_compressor.torch.algorithms.fp8_quant._quant_common import quant_config

    refused = {}
    for key, kind in quant_config._config_to_enum.items():
        try:
            if key in config and not isinstance(config[key], dict):
                quant_config._get_enum_from_string(kind, config[key], key)
        except ValueError:
            refused[key] = [name.lower() for name in kind.__members__]
    return refused


def picked_by_inc(
    modules: Mapping[str, str], settings: Mapping[str, Any], table: Mapping[str, Any]
) -> list[str]:
    """List the names of the modules that INC's own `should_quantize` takes.

    That function has no public door: INC calls it while it walks through a model. INC looks in the table of
    the machine it runs on whether a class can be quantized dynamically. Here `table` counts, which may be
    another machine's.

    Args:
        modules: {name: class name}.
        settings: both lists, and whether quantization is dynamic.
        table: from `device_table`.
    """
    from neural_compressor.torch.algorithms.fp8_quant._core import utils

    classes = {kind: info.type for kind, info in table.items()}
    wrapped = SimpleNamespace(cfg={**settings, "mod_dict": classes})
    original = getattr(utils, "is_supported_dynamic_op", None)
    utils.is_supported_dynamic_op = lambda kind: getattr(
        table.get(kind), "supports_dynamic_quantization", False
    )
    try:
        return [name for name, kind in modules.items() if utils.should_quantize(wrapped, kind, name)]
    finally:
        utils.is_supported_dynamic_op = original


def keys_of(config: Any) -> dict[str, Any]:
    """Extract the keys of INC's JSON, with their values, from a configuration object that carries more."""
    return {key: value for key, value in vars(config).items() if key not in _NO_KEYS}


def set_strategy(criterion: Any, name: str) -> None:
    """Give INC's `TuningCriterion` a strategy that its setter would refuse: the names stand in its code."""
    criterion._strategy = name


def quantizers_of(module: nn.Module) -> Any:
    """Return INC's quantizers of a module's inputs and weight, which hold the scales; None if it has none."""
    return getattr(module, "_mod_extra_config", None)


def quantized_weight(module: nn.Module, patched: Any) -> Tensor:
    """Quantize a module's weight through INC, with the scale and in the layout of INC's own module.

    Args:
        module: of the class that INC swaps; its weight is replaced.
        patched: INC's module in its place.
    """
    from neural_compressor.torch.algorithms.fp8_quant._core.quantize import quantize_params
    from neural_compressor.torch.algorithms.fp8_quant._quant_common.helper_modules import PatchedLinearBase

    with no_grad():
        quantize_params(module, quantizers_of(patched))
        weight: Any = module.weight
        if isinstance(patched, PatchedLinearBase):
            weight = weight.t().contiguous()
    quantized: Tensor = weight
    return quantized


def is_patched(module: nn.Module) -> bool:
    """Tell whether a module is INC's in the place of another: the start of their names is all they share."""
    return type(module).__name__.startswith("Patched")


def is_half_precision(module: nn.Module) -> bool:
    """Tell whether a module is INC's wrapper that runs another in BF16 or FP16."""
    return type(module).__name__ == "HalfPrecisionModuleWrapper"


def forget_quantizer(model: nn.Module) -> None:
    """Take off what prepare leaves on a model: it still points at the file that measures."""
    vars(model).pop("quantizer", None)


def is_cpu() -> bool:
    """Tell whether INC quantizes for a CPU on this machine."""
    from neural_compressor.torch.utils.auto_accelerator import auto_detect_accelerator

    return str(auto_detect_accelerator().current_device_name()) == "cpu"


def restore_modules(model: nn.Module) -> None:
    """Write INC's measurements and put the original modules back, as INC's convert begins."""
    from neural_compressor.torch.algorithms.fp8_quant import finish_measurements, with_patched_module

    with enabled_on_cpu():
        if with_patched_module(model):
            finish_measurements(model)
    put_modules_back(model)


def put_modules_back(model: nn.Module) -> None:
    """Put the original modules back in the place of those that INC measures with."""
    from neural_compressor.torch.algorithms.fp8_quant import (
        restore_patched_module,
        with_patched_module,
    )

    with enabled_on_cpu():  # INC looks for the classes of its table
        if with_patched_module(model):
            restore_patched_module(model)
