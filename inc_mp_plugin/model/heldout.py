"""Held-out samples: those that a plan is reported on, and others that a closed loop reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.subject import load_samples
from inc_mp_plugin.model.texts import count_texts, read_texts

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.pipeline.sections import ValidationSection


def heldout_batches(recipe: Recipe, section: ValidationSection, skip: int = 0) -> Sequence[Batch]:
    """The held-out batches of a recipe, cut as the calibration's are; `skip` samples come before them.

    Raises:
        InputError: a text is among the calibration samples, too.
    """
    calibration = recipe.calibration
    known = set(read_texts(calibration.data, calibration.samples).values())
    for number, text in read_texts(section.data, section.samples, skip).items():
        if text in known:
            message = (
                f"{section.data}, line {number}: this text is a calibration sample of "
                f"{calibration.data}; held-out samples must be others"
            )
            raise InputError(message)
    return load_samples(recipe.model, recipe.calibration, section.data, section.samples, skip)


def check_data(recipe: Recipe) -> None:
    """Check that the files of a recipe hold the samples that it asks for.

    Raises:
        InputError: one does not.
    """
    read_texts(recipe.calibration.data, recipe.calibration.samples)
    if recipe.validation is not None:
        read_texts(recipe.validation.data, recipe.validation.samples)
        if recipe.verify:
            check_two_parts(recipe.validation)


def check_two_parts(section: ValidationSection) -> None:
    """Check that a closed loop and the report can have held-out samples of their own.

    Raises:
        InputError: there are too few, or a text is in both parts.
    """
    samples, there = section.samples, count_texts(section.data)
    if there < 2 * samples:
        message = (
            f"{section.data} holds {there} samples; verify needs two times validation.samples, which is "
            f"{samples}: the first are what the plan is reported on, the loop reads as many others; give "
            f"more, or validation.samples={there // 2}"
        )
        raise InputError(message)
    known = set(read_texts(section.data, samples).values())
    for number, text in read_texts(section.data, samples, samples).items():
        if text in known:
            message = (
                f"{section.data}, line {number}: this text is among the first {samples}, too; what the "
                "loop of verify reads and what the plan is reported on must be different samples"
            )
            raise InputError(message)
