"""INC's own mixed precision, op by op: BF16 and FP16 beside an FP32 base."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.inc.attributes import attributes_of, take_attributes_back
from inc_mp_plugin.inc.backend import is_half_precision
from inc_mp_plugin.inc.patterns import compress
from inc_mp_plugin.inc.selection import compare_selection
from inc_mp_plugin.libraries.torch import parameters_of
from inc_mp_plugin.model.modules import class_names, put_module, twin
from inc_mp_plugin.model.switch import Switch
from inc_mp_plugin.targets.cpu import CPU_BF16

BASE = str(CPU_BF16.base)


def mixed_precision_config(
    base: str, formats: Mapping[str, str], modules: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write a configuration of INC's mixed precision, for `quantize(model, config, run_fn=...)`.

    Args:
        base: the base format.
        formats: the lower format of each op that leaves the base.
        modules: all modules of the model, {name: class}; without it INC's selection is not checked.

    Raises:
        InputError: a base format or a lower one that INC's mixed precision has not.
        SelectionError: INC would run other modules in the lower formats.
    """
    lower = sorted(set(formats.values()))
    if base != BASE or not set(lower) <= set(CPU_BF16.formats):
        message = (
            f"the plan mixes {', '.join([base, *lower])}; target {CPU_BF16.name} runs "
            f"{' and '.join(CPU_BF16.formats)} beside {BASE}"
        )
        raise InputError(message)
    local = {
        pattern: {"dtype": format_name}
        for format_name in lower
        for pattern in compress([op for op in formats if formats[op] == format_name])
    }
    config: dict[str, Any] = {"mixed_precision": {"global": {"dtype": BASE}, "local": local}}
    if modules is not None:
        compare_selection(set(formats), set(_selected(config, modules)), modules, CPU_BF16.name)
    return config


def lower_precision(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    """Let INC wrap the ops of a configuration, in place, and cast their weights once.

    INC's wrapper runs its module under autocast, which casts an FP32 weight at every call: that costs
    more than the faster product saves. Cast beforehand, it gives the same values without.

    Args:
        model: an FP32 model.
        config: from `mixed_precision_config`.
    """
    from neural_compressor.torch.quantization import convert

    before = dict(model.named_modules())
    convert(model, dict(config))
    for name, wrapper in list(model.named_modules()):
        if name in before and is_half_precision(wrapper):
            _cast_once(wrapper)
    return model


def half_precision_switch(model: nn.Module, formats: Mapping[str, str]) -> Switch:
    """Convert these ops through INC, and keep both modules of each; the model then runs in its base.

    Args:
        model: an FP32 model; its weights stay, those of the ops are held in both formats.
        formats: the lower format of each op.
    """
    base = {op: model.get_submodule(op) for op in formats}
    modules = class_names(model)
    attributes = attributes_of(model)
    try:
        lower_precision(model, mixed_precision_config(BASE, formats, modules))
        wrappers = {op: model.get_submodule(op) for op in formats}
    finally:
        for op, module in base.items():
            put_module(model, op, module)
        take_attributes_back(model, attributes)
    lower: dict[str, dict[str, nn.Module]] = {}
    for op, format_name in formats.items():
        lower.setdefault(format_name, {})[op] = wrappers[op]
    return Switch(model, base, lower)


def _cast_once(wrapper: Any) -> None:
    """Give a wrapper a module of its own in the lower format; the wrapped one may be in use elsewhere."""
    module = twin(wrapper.module)
    own, outer = parameters_of(module), parameters_of(wrapper)
    for name, parameter in own.items():
        if parameter is not None:
            lowered = nn.Parameter(parameter.detach().to(wrapper.dtype), requires_grad=False)
            own[name] = outer[name] = lowered
    wrapper.module = module


def _selected(config: Mapping[str, Any], modules: Mapping[str, str]) -> list[str]:
    """List the names of the modules that INC's own mapping puts into a lower format."""
    from neural_compressor.torch.quantization import MixedPrecisionConfig

    parsed = MixedPrecisionConfig.from_dict(config["mixed_precision"])
    supported = {"FalconLinear", *(k.__name__ for k in MixedPrecisionConfig.supported_half_precision_ops)}
    candidates = [(name, kind) for name, kind in modules.items() if kind in supported]
    mapping = parsed.to_config_mapping(model_info=candidates)
    return [name for (name, _), settings in mapping.items() if settings.dtype in CPU_BF16.formats]
