"""INC's own prepare, calibrate and convert for a configuration; and switching ops afterwards."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.inc.attributes import attributes_of, take_attributes_back
from inc_mp_plugin.inc.backend import (
    device_table,
    enabled_on_cpu,
    forget_models,
    forget_quantizer,
    is_cpu,
    is_patched,
    restore_modules,
)
from inc_mp_plugin.inc.config import config_of
from inc_mp_plugin.inc.mixed_precision import lower_precision
from inc_mp_plugin.model.attention import expose_bgemms
from inc_mp_plugin.model.batches import call
from inc_mp_plugin.model.experts import expose_experts
from inc_mp_plugin.model.finite import check_outputs
from inc_mp_plugin.model.modules import class_names, twin
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.model.switch import Switch
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.targets import CPU_BF16, CPU_QDQ
from inc_mp_plugin.targets.layout import Captured

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch


def apply(model: nn.Module, plan: Plan, batches: Iterable[Any]) -> nn.Module:
    """Quantize a model as planned: INC prepares, runs the batches, and converts, on this CPU.

    The model is changed in place: planned ops become INC's FP8 modules and lose their weights in the
    base format, or its half-precision wrappers, for which no batch has to be run. Fused experts and
    attention products become modules first if the plan lowers any.

    Afterwards the first batch is run once more: an op that makes NaN or infinity of it is refused.

    Args:
        model: the model of the plan, in evaluation mode afterwards.
        plan: from `solve`.
        batches: calibration batches, from which INC takes its scales.

    Returns:
        The same model, or the one that a compiled model was made of; untouched if the plan quantizes nothing.

    Raises:
        InputError: an op of the plan is not a module of the model, or no batch was given.
        SelectionError: INC would quantize other ops than the plan's.
        NonFiniteError: an op's outputs are not finite in the converted model; the text names the op.
    """
    if not plan.quantized:
        return model
    model, batches = unwrapped(model), plain_batches(batches)
    model.eval()
    modules = class_names(model)
    for expose in (expose_experts, expose_bgemms):
        if not modules.keys() >= set(plan.quantized):
            expose(model)
            modules = class_names(model)
    missing = [name for name in plan.quantized if name not in modules]
    if missing:
        message = f"the plan's op {missing[0]!r} is not a module of this model"
        raise InputError(message)
    half = {plan.formats[op] for op in plan.quantized} <= set(CPU_BF16.formats)
    target = CPU_BF16 if half else CPU_QDQ
    config = config_of(plan.base, plan.formats, target, Captured(tuple(plan.formats), modules))
    rest = iter(batches)
    first = list(islice(rest, 1))
    converted = lower_precision(model, config) if half else quantize(model, config, chain(first, rest))
    for batch in first:
        check_outputs(converted, plan.quantized, partial(call, batch=batch))
    return converted


def quantize(model: nn.Module, config: Mapping[str, Any], batches: Iterable[Batch]) -> nn.Module:
    """Run INC's prepare, the batches, and INC's convert; nothing is left on disk or in INC's globals.

    Args:
        model: converted in place.
        config: from `to_inc_config`; its mode and its path of measurements are replaced.
        batches: calibration batches, from which INC takes its scales.

    Raises:
        InputError: no batch was given; the model then has its own modules again.
    """
    from neural_compressor.torch.quantization import convert, prepare

    with enabled_on_cpu(), tempfile.TemporaryDirectory(prefix="inc_mp_plugin-") as folder:
        settings = {**config, "dump_stats_path": f"{folder}/measure"}
        measuring, quantizing = (fp8_config(settings, mode, folder) for mode in ("MEASURE", "QUANTIZE"))
        forget_models()
        attributes = attributes_of(model)
        try:
            prepare(model, measuring)
            try:
                _calibrate(model, batches)
            except BaseException:
                restore_modules(model)
                take_attributes_back(model, attributes)
                raise
            forget_quantizer(model)
            model.quant_config = quantizing
            converted: nn.Module = convert(model)
        finally:
            forget_models()
    return converted


def fp8_config(config: Mapping[str, Any], mode: str, folder: str) -> Any:
    """Make INC's configuration object of a mode, which INC reads from a file.

    Args:
        config: keys of INC's JSON.
        mode: "MEASURE" or "QUANTIZE".
        folder: of the file.
    """
    from neural_compressor.torch.quantization import FP8Config

    path = Path(folder, f"{mode.lower()}.json")
    path.write_text(json.dumps({**config, "mode": mode}))
    return FP8Config.from_json_file(str(path))


def _calibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    count = 0
    with torch.no_grad():
        for batch in batches:
            call(model, batch)
            count += 1
    if not count:
        message = "no calibration batch was given; INC needs at least one to choose its scales"
        raise InputError(message)


def switchable(
    model: nn.Module, config: Mapping[str, Any], format_name: str, batches: Iterable[Batch]
) -> Switch:
    """Convert a model whole, and keep both modules of every op that INC quantized.

    Scales do not depend on what else is quantized, so every choice of ops gives the very values that
    INC's convert would give for it, without converting again. Base and FP8 weights are both kept.

    Args:
        model: converted in place.
        config: from `to_inc_config`, of a plan that quantizes everything that may ever be.
        format_name: the FP8 format of that plan.
        batches: calibration batches.
    """
    expose_experts(model)
    expose_bgemms(model)
    model.eval()
    table = device_table("cpu" if is_cpu() else "hpu")
    base = {name: twin(m) for name, m in model.named_modules() if type(m).__name__ in table}
    quantize(model, config, batches)
    for module in base.values():
        for parameter in module.parameters():
            if parameter.dtype == torch.float16:  # as INC does with all that it leaves in the base format
                parameter.data = parameter.data.bfloat16()
    converted = {name: model.get_submodule(name) for name in base}
    patched = {name: m for name, m in converted.items() if is_patched(m)}
    return Switch(model, base, {format_name: patched})
