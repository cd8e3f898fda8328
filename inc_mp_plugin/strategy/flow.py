"""INC's flows with a plan in them: prepare, calibrate, and convert here or in another process."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from neural_compressor.common.utils import Mode
from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.plan import VALUE_METHODS, Plan
from inc_mp_plugin.inc.attributes import set_aside, take_attributes_back
from inc_mp_plugin.inc.backend import (
    enabled_on_cpu,
    forget_models,
    forget_quantizer,
    put_modules_back,
    restore_modules,
)
from inc_mp_plugin.inc.convert import fp8_config
from inc_mp_plugin.inc.keys import NAME
from inc_mp_plugin.libraries.accelerate import is_dispatched
from inc_mp_plugin.libraries.torch import ORIGINAL, is_compiled
from inc_mp_plugin.libraries.transformers import save_under_own_names
from inc_mp_plugin.model.batches import OnDevice
from inc_mp_plugin.model.finite import check_outputs
from inc_mp_plugin.model.subject import base_format
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.pipeline.in_memory import tune
from inc_mp_plugin.report.text import summary
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.strategy.batch_recorder import BatchRecorder
from inc_mp_plugin.strategy.choices import (
    all_targets,
    check_with_model,
    format_of,
    known_scales,
    scales_of,
)
from inc_mp_plugin.strategy.exposure import Exposure
from inc_mp_plugin.strategy.lists import LiveModel
from inc_mp_plugin.strategy.settings import Settings, has_several, read, remove_temporary_file

Entry = Callable[..., nn.Module]

_PREPARED = "_ip_mse_prepared"


class Prepared(NamedTuple):
    """The state that a prepared model carries until it is converted."""

    settings: Settings
    inc: dict[str, Any]
    recorder: BatchRecorder
    exposure: Exposure


def prepare(entry: Entry, model: nn.Module, config: Any, mapping: Mapping[Any, Any]) -> nn.Module:
    """Let INC observe a model, and keep what it is called with.

    Args:
        entry: INC's own FP8 algorithm.
        model: changed in place; fused experts and, where they count, attention products become modules.
        config: INC's, with keys of ours.
        mapping: as INC gives it to its algorithms.
    """
    settings, inc = _read(model, config)
    _forget_preparation(model)
    forget_models()
    exposure = _expose(model, settings)
    with _undone(model, exposure), enabled_on_cpu():
        prepared = _run(entry, model, inc, mapping, Mode.PREPARE)
    ranks.wait()  # to measure, INC moves older files away, and with them those of a faster process
    recorder = BatchRecorder(settings.samples)
    recorder.watch(prepared)
    vars(prepared)[_PREPARED] = Prepared(settings, inc, recorder, exposure)
    return prepared


def _forget_preparation(model: nn.Module) -> None:
    """Undo an earlier prepare that was not followed by a convert."""
    before: Prepared | None = vars(model).pop(_PREPARED, None)
    if before is not None:
        before.recorder.forget(model)
        _restore(model, before.exposure)


@contextmanager
def calibrated(model: nn.Module) -> Iterator[None]:
    """Watch the calibration of a prepared model: if it fails, the model leaves as it came to `prepare`."""
    prepared: Prepared = vars(model)[_PREPARED]
    with _undone(model, prepared.exposure):
        try:
            yield
        except BaseException:
            prepared.recorder.forget(model)
            raise


@contextmanager
def _undone(model: nn.Module, exposure: Exposure) -> Iterator[None]:
    """Restore a model's own modules and attributes on an error."""
    try:
        yield
    except BaseException:
        _restore(model, exposure)
        raise


def _restore(model: nn.Module, exposure: Exposure) -> None:
    put_modules_back(model)
    take_attributes_back(model, exposure.attributes)
    exposure.hide(model)
    forget_models()


def finalize(model: nn.Module) -> None:
    """End a calibration whose model another process will convert: sensitivities and plan go to disk.

    The model has its own modules again afterwards. Nothing is done for a model that was not prepared
    for `ip_mse`.
    """
    prepared: Prepared | None = vars(model).pop(_PREPARED, None)
    if prepared is None:
        return
    with _undone(model, prepared.exposure):
        prepared.recorder.stop(model)
        put_modules_back(model)
        with set_aside(model, prepared.exposure.attributes):
            live = LiveModel.of(model, prepared.inc, prepared.settings)
            _plan(live, prepared.settings, prepared.inc, prepared.recorder)
    prepared.exposure.hide(model)


def convert(entry: Entry, model: nn.Module, config: Any, mapping: Mapping[Any, Any]) -> nn.Module:
    """Plan, and let INC convert what is planned.

    A model that was not prepared here is planned from what `finalize` left on disk; one that was runs a
    batch again, and an op that makes NaN or infinity of it is refused by its name.

    Args:
        entry: INC's own FP8 algorithm.
        model: from `prepare`, or one that was not prepared here; changed in place.
        config: INC's, with keys of ours; read if the model was not prepared here.
        mapping: as INC gives it to its algorithms.
    """
    prepared: Prepared | None = vars(model).pop(_PREPARED, None)
    if prepared is None:
        settings, inc = _read(model, config)
        recorder, exposure = None, _expose(model, settings)
    else:
        settings, inc, recorder, exposure = prepared
    with enabled_on_cpu():
        with _undone(model, exposure):
            if recorder is not None:
                recorder.stop(model)
                restore_modules(model)
            with set_aside(model, exposure.attributes):
                live = LiveModel.of(model, inc, settings)
                plan = _plan(live, settings, inc, recorder)
            inc["blocklist"]["names"] += live.blocked(plan)
        if not live.candidates:  # the lists keep everything out, and INC has measured nothing
            _restore(model, exposure)
            return model
        exposure.keep(model)
        forget_quantizer(model)
        forget_models()
        try:
            converted = _run(entry, model, inc, mapping, Mode.CONVERT)
        finally:
            forget_models()
    save_under_own_names(converted)
    if recorder is not None:
        check_outputs(converted, plan.quantized, partial(recorder.replay, loss_fn=settings.loss_fn))
    return converted


def folder_of(inc: Mapping[str, Any]) -> Path:
    """Return the folder of artefacts.

    It lies beside INC's measurements, under another name, or INC would move the artefacts away.
    """
    path = Path(inc["dump_stats_path"])
    return path.parent / NAME / path.name


def _read(model: nn.Module, config: Any) -> tuple[Settings, dict[str, Any]]:
    if is_compiled(model):
        message = (
            f"the model is compiled; give the model itself (model.{ORIGINAL}), and compile what comes out"
        )
        raise InputError(message)
    if is_dispatched(model):
        unwrapped(model)  # says why not: INC converts whole models
    base = base_format(model)
    settings, inc = read(config, base)
    for key in Settings.__slots__:
        value = getattr(settings, key)
        if has_several(key, value):
            message = (
                f"{key} is {value}: autotune tries several, of an IPMSEConfig; everything else needs one"
            )
            raise InputError(message)
    check_with_model(settings, base, inc)  # before calibration, which may take long
    remove_temporary_file(config)
    return settings, inc


def _expose(model: nn.Module, settings: Settings) -> Exposure:
    # No bgemm gains memory, so attention may stay as it is, unless a target ties its products to other ops.
    return Exposure.in_model(model, products=settings.objective != "memory" or bool(settings.targets))


def _plan(
    live: LiveModel, settings: Settings, inc: Mapping[str, Any], recorder: BatchRecorder | None
) -> Plan:
    model, folder = live.model, folder_of(inc)
    if recorder is None and not (folder / "sensitivity.json").exists():
        message = (
            f"there are no sensitivities in {folder}: convert the model that prepare returned and "
            f"calibration ran, or measure with {NAME} first and end with finalize_calibration"
        )
        raise InputError(message)
    device = next(model.parameters()).device
    heldout = settings.validation
    must_know = settings.strategy in VALUE_METHODS or heldout is not None
    keys = {**settings.of_a_recipe, "targets": all_targets(settings), **asdict(live.serving)}
    if heldout is not None:
        keys["validation"] = replace(heldout, batches=OnDevice(heldout.batches, device))
    plan = tune(
        model,
        None if recorder is None else OnDevice(recorder.batches, device),
        **keys,
        scales=(scales_of if must_know else known_scales)(settings, inc),
        formats=(format_of(inc),),
        loss_fn=settings.loss_fn,
        allowed=live.candidates,
        out=folder,
    )
    for line in summary(plan):
        say(line)
    return plan


def _run(
    entry: Entry, model: nn.Module, inc: Mapping[str, Any], mapping: Mapping[Any, Any], mode: Mode
) -> nn.Module:
    """Run INC's own algorithm with a JSON file of INC's keys only."""
    with tempfile.TemporaryDirectory(prefix="inc_mp_plugin-") as folder:
        config = fp8_config(inc, "MEASURE" if mode == Mode.PREPARE else "QUANTIZE", folder)
        return entry(model, dict.fromkeys(mapping, config), mode=mode)
