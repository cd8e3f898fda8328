"""INC's own prepare, calibrate and convert for a configuration; and switching ops afterwards."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inc_mp_plugin.attention import expose_bgemms
from inc_mp_plugin.batches import call
from inc_mp_plugin.errors import InputError
from inc_mp_plugin.inc.backend import device_table, enable_on_cpu, forget_models, restore_modules
from inc_mp_plugin.inc.config import to_inc_config
from inc_mp_plugin.plan import Plan

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch


def apply(model: nn.Module, plan: Plan, batches: Iterable[Batch]) -> nn.Module:
    """Quantize a model as planned: INC prepares, runs the batches, and converts, on this CPU.

    The model is changed in place: planned ops become INC's FP8 modules and lose their weights in the
    base format. Attention products become modules first if the plan has any in FP8.

    Args:
        model: the model of the plan, in evaluation mode afterwards.
        plan: from `solve`.
        batches: calibration batches, from which INC takes its scales.

    Returns:
        The same model; untouched if the plan quantizes nothing.

    Raises:
        InputError: an op of the plan is not a module of the model, or no batch was given.
        SelectionError: INC would quantize other ops than the plan's.
    """
    if not plan.quantized:
        return model
    model.eval()
    modules = _modules(model)
    if not modules.keys() >= set(plan.quantized):
        expose_bgemms(model)
        modules = _modules(model)
    missing = [name for name in plan.quantized if name not in modules]
    if missing:
        message = f"the plan's op {missing[0]!r} is not a module of this model"
        raise InputError(message)
    return quantize(model, to_inc_config(plan, "cpu-qdq", modules), batches)


def quantize(model: nn.Module, config: Mapping[str, Any], batches: Iterable[Batch]) -> nn.Module:
    """Run INC's prepare, the batches, and INC's convert; nothing is left on disk or in INC's globals.

    Raises:
        InputError: no batch was given; the model then has its own modules again.
    """
    from neural_compressor.torch.quantization import FP8Config, convert, prepare

    enable_on_cpu()
    with tempfile.TemporaryDirectory(prefix="inc_mp_plugin-") as folder:
        settings = {**config, "dump_stats_path": f"{folder}/measure"}
        paths = {}
        for mode in ("MEASURE", "QUANTIZE"):
            paths[mode] = Path(folder, f"{mode.lower()}.json")
            paths[mode].write_text(json.dumps({**settings, "mode": mode}))
        forget_models()
        attributes = set(vars(model))
        try:
            prepare(model, FP8Config.from_json_file(str(paths["MEASURE"])))
            try:
                _calibrate(model, batches)
            except BaseException:
                restore_modules(model)
                for name in vars(model).keys() - attributes:  # what INC hung on the model
                    delattr(model, name)
                raise
            # The quantizer that prepare leaves behind still points at the MEASURE file.
            del model.quantizer
            model.quant_config = FP8Config.from_json_file(str(paths["QUANTIZE"]))
            converted: nn.Module = convert(model)
        finally:
            forget_models()
    return converted


def _modules(model: nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules() if name}


def _calibrate(model: nn.Module, batches: Iterable[Batch]) -> None:
    count = 0
    with torch.no_grad():
        for batch in batches:
            call(model, batch)
            count += 1
    if not count:
        message = "no calibration batch was given; INC needs at least one to choose its scales"
        raise InputError(message)


class Switch:
    """A model that INC converted whole, whose ops can be switched between base format and FP8.

    Scales do not depend on what else is quantized, so every choice of ops gives the very values that
    INC's convert would give for it, without converting again. Base and FP8 weights are both kept.
    """

    def __init__(self, model: nn.Module, config: Mapping[str, Any], batches: Iterable[Batch]) -> None:
        """Convert `model`, in place, with `config`; then every op it selects can be switched."""
        expose_bgemms(model)
        self.model = model.eval()
        table = device_table("cpu")
        self._base = {
            name: _copy(module) for name, module in model.named_modules() if type(module).__name__ in table
        }
        quantize(model, config, batches)
        self._low = {
            name: module
            for name in self._base
            if (module := model.get_submodule(name)) and type(module).__name__.startswith("Patched")
        }

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops that can be switched."""
        return tuple(self._low)

    def select(self, quantized: Collection[str]) -> None:
        """Run exactly these ops in FP8, all others in the base format.

        Raises:
            InputError: INC did not convert one of them.
        """
        missing = sorted(set(quantized) - self._low.keys())
        if missing:
            message = f"INC did not convert {missing[0]!r}; calibration never ran it"
            raise InputError(message)
        for name, low in self._low.items():
            parent, _, child = name.rpartition(".")
            module = low if name in quantized else self._base[name]
            setattr(self.model.get_submodule(parent), child, module)


def _copy(module: nn.Module) -> nn.Module:
    """Copy a module, sharing tensors but not the dict of them, which INC empties."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    return twin
