"""The model and the samples that a recipe names, for calibration and for measurement."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.data.load import load_batches
from inc_mp_plugin.model.data.reading import documents
from inc_mp_plugin.model.data.samples import Conversation, Sample, read_samples, samples_of
from inc_mp_plugin.model.heldout import HeldOut
from inc_mp_plugin.model.loading import (
    empty_model,
    load_config,
    load_model,
    load_tokenizer,
    model_fingerprint,
    random_model,
)
from inc_mp_plugin.model.subject import Subject, versions
from inc_mp_plugin.pipeline.next_command import refuse_model_in_memory
from inc_mp_plugin.pipeline.own_loss import loss_fingerprint, loss_of
from inc_mp_plugin.pipeline.spread import casts_as_used
from inc_mp_plugin.runtime.store import file_fingerprint
from inc_mp_plugin.targets import get_target

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.core.literals import Measuring
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.pipeline.sections import DataSection, ModelSection, ValidationSection

Json = dict[str, Any]
_YOUNGER = {"split", "subset", "column", "pack", "labels"}


def subject_of(recipe: Recipe, *, allow_code: bool = False) -> Subject:
    """Name the model, the calibration data and the loss of a recipe; model and data are not loaded yet.

    Args:
        recipe: the checked recipe.
        allow_code: run the file of the recipe's own loss.

    Raises:
        InputError: the model was in memory, there is no such model, file or loss, or its code is not allowed.
    """
    refuse_model_in_memory(recipe.model)
    model, data = recipe.model, recipe.calibration
    loss_fn = loss_of(recipe.loss, allow_code=allow_code)
    own_loss = {} if loss_fn is None else {"loss": loss_fingerprint(recipe.loss)}
    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "weights": model.weights,
            "config": dict(model.config),
            "tokenizer": model.tokenizer,
            **_merging(model),
            **_data_settings(recipe, "calibration", data),
            **own_loss,
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: _model(recipe),
        load_batches=lambda: _batches(recipe, data, 0),
        loss_fn=loss_fn,
    )


def subject_without_weights(recipe: Recipe) -> Subject:
    """Name the model of a recipe by its configuration alone; its one batch is of zeros.

    Raises:
        InputError: there is no such model.
    """
    model, data = recipe.model, recipe.calibration

    def zeros() -> list[dict[str, object]]:
        import torch

        ids = torch.zeros(data.batch_size, data.sequence_length, dtype=torch.long)
        return [{"input_ids": ids, **({"labels": ids} if _config(model).is_encoder_decoder else {})}]

    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "config": dict(model.config),
            **_merging(model),
            "calibration.batch_size": data.batch_size,
            "calibration.sequence_length": data.sequence_length,
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: empty_model(
            _config(model),
            model.dtype,
            trust_remote_code=model.trust_remote_code,
            adapter=None if model.merge_adapters else model.name_or_path,
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
        return _data_settings(recipe, "validation", section)

    def load(skip: int) -> Sequence[Batch]:
        _check_against_calibration(recipe, section, skip)
        return _batches(recipe, section, skip)

    plans, seed = section.random_plans, section.seed
    return HeldOut(identify, section.samples, plans, seed, load, through_of(recipe, section.through))


def through_of(recipe: Recipe, through: Measuring) -> Measuring:
    """Return what lowers the ops of a recipe's model where it is measured.

    INC converts a model that is in one place and in one dtype, and knows nothing of the scales of a server.

    Args:
        recipe: the checked recipe.
        through: the recipe's own word.
    """
    of_server = bool(recipe.targets) and get_target(recipe.targets[0]).device is None
    elsewhere = of_server or recipe.run.device_map is not None or casts_as_used(recipe)
    return "hooks" if through == "auto" and elsewhere else through


def check_data(recipe: Recipe) -> None:
    """Check that the files of a recipe hold as many samples as the recipe asks for.

    Raises:
        InputError: a file is missing, or holds fewer.
    """
    _documents(recipe, recipe.calibration)
    if recipe.validation is not None:
        _documents(recipe, recipe.validation)
        if recipe.verify:
            _check_two_parts(recipe, recipe.validation)


def _check_against_calibration(recipe: Recipe, section: ValidationSection, skip: int) -> None:
    calibration = set(_documents(recipe, recipe.calibration).values())
    fault = f"is a calibration sample of {recipe.calibration.data}; held-out samples must be others"
    _refuse_texts(_documents(recipe, section, skip), calibration, fault)


def _refuse_texts(samples: dict[str, Sample], texts: set[Sample], fault: str) -> None:
    """Refuse held-out samples that are among some texts; `fault` says what the texts are."""
    for place, sample in samples.items():
        if sample in texts:
            message = f"{place}: this text {fault}"
            raise InputError(message)


def _check_two_parts(recipe: Recipe, section: ValidationSection) -> None:
    """Check that the closed loop and the report each get held-out samples of their own."""
    samples = section.samples
    try:
        second = _documents(recipe, section, samples)
    except InputError as error:
        message = (
            f"{error}; verify needs two times validation.samples, which is {samples}: the plan is reported "
            "on the first half, and corrected on the second"
        )
        raise InputError(message) from error
    if recipe.calibration.pack:  # one text may end the first part and begin the second
        return
    fault = f"is among the first {samples}, too; verify corrects and reports the plan on different samples"
    _refuse_texts(second, set(_documents(recipe, section).values()), fault)


def _documents(recipe: Recipe, section: DataSection, skip: int = 0) -> dict[str, Sample]:
    """Read the texts of a section's samples by place; with `pack`, also those of samples before them."""
    if not recipe.calibration.pack:
        return read_samples(section.excerpt(skip))
    return documents(_tokenizer(recipe), section.excerpt(skip), recipe.calibration.shape)


def _data_settings(recipe: Recipe, name: str, section: DataSection) -> Json:
    """Collect what identifies a section's samples: a hash of the file or of the texts, and the settings.

    Settings that are younger than version 0.1.0 count where they are set.
    """
    settings = section.model_dump(mode="json", exclude={"data", "random_plans", "seed", *_YOUNGER})
    younger = section.model_dump(mode="json", include=_YOUNGER, exclude_defaults=True)
    if section.data.is_file():
        content = file_fingerprint(section.data)
        samples = [sample for _, sample in islice(samples_of(section.excerpt().source), section.samples)]
    else:
        samples = list(_documents(recipe, section).values())
        content = _hash_text(repr(samples))
    paths = [path for sample in samples if isinstance(sample, Conversation) for path in sample.images]
    if paths:
        content = _hash_text(" ".join([content, *map(file_fingerprint, paths)]))
    return {
        f"{name}.data": content,
        **{f"{name}.{key}": value for key, value in {**settings, **younger}.items()},
    }


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _merging(section: ModelSection) -> Json:
    """Name what else decides a model's weights; nothing where nothing is merged, as in older folders."""
    return {"merge_adapters": True} if section.merge_adapters else {}


def _model(recipe: Recipe) -> nn.Module:
    section = recipe.model
    name, dtype, trusted = section.name_or_path, section.dtype, section.trust_remote_code
    if section.weights == "random":
        model = random_model(_config(section), dtype, trust_remote_code=trusted)
    else:
        model = load_model(
            name,
            dtype,
            trust_remote_code=trusted,
            merge_adapters=section.merge_adapters,
            device_map=recipe.run.device_map,
            cast_as_used=casts_as_used(recipe),
        )
    if recipe.calibration.pack:
        from inc_mp_plugin.model.packing import check_packing

        check_packing(model)
    return model


def _config(section: ModelSection) -> Any:
    return load_config(section.name_or_path, section.config, trust_remote_code=section.trust_remote_code)


def _tokenizer(recipe: Recipe) -> Any:
    model = recipe.model
    return load_tokenizer(model.tokenizer or model.name_or_path, trust_remote_code=model.trust_remote_code)


def _batches(recipe: Recipe, section: DataSection, skip: int) -> Sequence[Batch]:
    """Load batches of a section's samples, after `skip` others, made as the calibration's are."""
    model = recipe.model
    return load_batches(
        _config(model),
        model.tokenizer or model.name_or_path,
        section.excerpt(skip),
        recipe.calibration.shape,
        trust_remote_code=model.trust_remote_code,
    )
