"""The model and the samples that a recipe names, for calibration and for measurement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data import load_batches
from inc_mp_plugin.model.heldout import HeldOut
from inc_mp_plugin.model.loading import empty_model, load_config, load_model, model_fingerprint, random_model
from inc_mp_plugin.model.subject import Subject, versions
from inc_mp_plugin.model.texts import Conversation, count_texts, read_texts
from inc_mp_plugin.pipeline.next_command import refuse_model_in_memory
from inc_mp_plugin.runtime.store import file_fingerprint

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.pipeline.sections import CalibrationSection, ModelSection, ValidationSection

Json = dict[str, Any]


def subject_of(recipe: Recipe) -> Subject:
    """Name the model and the calibration data of a recipe; nothing is loaded yet.

    Raises:
        InputError: the model was in memory, or there is no such model or file.
    """
    refuse_model_in_memory(recipe.model)
    model, data = recipe.model, recipe.calibration
    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "weights": model.weights,
            "config": dict(model.config),
            "tokenizer": model.tokenizer,
            **_data_settings("calibration", data),
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: _model(model),
        load_batches=lambda: _batches(recipe, data.data, data.samples),
    )


def subject_without_weights(recipe: Recipe) -> Subject:
    """Name the model of a recipe by its configuration alone; its one batch is of zeros.

    Raises:
        InputError: there is no such model.
    """
    model, data = recipe.model, recipe.calibration

    def zeros() -> list[dict[str, object]]:
        import torch

        return [{"input_ids": torch.zeros(data.batch_size, data.sequence_length, dtype=torch.long)}]

    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "config": dict(model.config),
            "calibration.batch_size": data.batch_size,
            "calibration.sequence_length": data.sequence_length,
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: empty_model(
            _config(model), model.dtype, trust_remote_code=model.trust_remote_code
        ),
        load_batches=zeros,
        has_weights=False,
    )


def heldout_of(recipe: Recipe) -> HeldOut | None:
    """Name the held-out samples of a recipe; return None without a validation section. No file is read yet.

    Loading the samples raises InputError if one of them is a calibration sample, too.
    """
    section = recipe.validation
    if section is None:
        return None

    def identify() -> Json:
        return _data_settings("validation", section)

    def load(skip: int) -> Sequence[Batch]:
        _check_against_calibration(recipe, section, skip)
        return _batches(recipe, section.data, section.samples, skip)

    return HeldOut(identify, section.samples, section.random_plans, section.seed, load)


def check_data(recipe: Recipe) -> None:
    """Check that the files of a recipe hold as many samples as the recipe asks for.

    Raises:
        InputError: a file is missing, or holds fewer.
    """
    read_texts(recipe.calibration.data, recipe.calibration.samples)
    if recipe.validation is not None:
        read_texts(recipe.validation.data, recipe.validation.samples)
        if recipe.verify:
            _check_two_parts(recipe.validation)


def _check_against_calibration(recipe: Recipe, section: ValidationSection, skip: int) -> None:
    calibration = recipe.calibration
    texts = set(read_texts(calibration.data, calibration.samples).values())
    fault = f"is a calibration sample of {calibration.data}; held-out samples must be others"
    _refuse_texts(section, skip, texts, fault)


def _refuse_texts(section: ValidationSection, skip: int, texts: set[str | Conversation], fault: str) -> None:
    """Refuse held-out samples that are among some texts; `fault` says what the texts are."""
    for number, text in read_texts(section.data, section.samples, skip).items():
        if text in texts:
            message = f"{section.data}, line {number}: this text {fault}"
            raise InputError(message)


def _check_two_parts(section: ValidationSection) -> None:
    """Check that the closed loop and the report each get held-out samples of their own."""
    samples, there = section.samples, count_texts(section.data)
    if there < 2 * samples:
        message = (
            f"{section.data} holds {there} samples; verify needs two times validation.samples, which is "
            f"{samples}: the plan is reported on the first half, and corrected on the second; give more "
            f"samples, or validation.samples={there // 2}"
        )
        raise InputError(message)
    first = set(read_texts(section.data, samples).values())
    fault = f"is among the first {samples}, too; verify corrects and reports the plan on different samples"
    _refuse_texts(section, samples, first, fault)


def _data_settings(name: str, section: CalibrationSection | ValidationSection) -> Json:
    """Collect what identifies a section's samples: a hash of the file, and the settings."""
    settings = section.model_dump(mode="json", exclude={"data", "random_plans", "seed"})
    return {
        f"{name}.data": file_fingerprint(section.data),
        **{f"{name}.{key}": value for key, value in settings.items()},
    }


def _model(section: ModelSection) -> nn.Module:
    name, dtype, trusted = section.name_or_path, section.dtype, section.trust_remote_code
    if section.weights == "random":
        return random_model(_config(section), dtype, trust_remote_code=trusted)
    return load_model(name, dtype, trust_remote_code=trusted)


def _config(section: ModelSection) -> Any:
    return load_config(section.name_or_path, section.config, trust_remote_code=section.trust_remote_code)


def _batches(recipe: Recipe, data: Path, samples: int, skip: int = 0) -> Sequence[Batch]:
    """Load batches of a file's samples, after `skip` others, tokenized and cut as the calibration's are."""
    model, calibration = recipe.model, recipe.calibration
    return load_batches(
        _config(model),
        model.tokenizer or model.name_or_path,
        data,
        samples=samples,
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        trust_remote_code=model.trust_remote_code,
        skip=skip,
    )
