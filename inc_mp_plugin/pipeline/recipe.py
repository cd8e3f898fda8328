"""Recipes: YAML to a frozen value, strictly; every fault is reported, all of them together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError, field_validator, model_validator

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.formats import check_formats, get_format
from inc_mp_plugin.core.knobs import KNOBS, check_knobs
from inc_mp_plugin.core.literals import (
    IN_MEMORY,
)
from inc_mp_plugin.core.results import LEAST_SAMPLES
from inc_mp_plugin.pipeline.faults import in_one_line
from inc_mp_plugin.pipeline.keys import Keys
from inc_mp_plugin.pipeline.next_command import key_of
from inc_mp_plugin.pipeline.own_loss import AUTO
from inc_mp_plugin.pipeline.places import look_beside
from inc_mp_plugin.pipeline.recipe_file import read_recipe
from inc_mp_plugin.pipeline.sections import (
    DataSection,
)
from inc_mp_plugin.pipeline.spread import spread_fault
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.shipped import or_shipped
from inc_mp_plugin.solver.uncertainty import LEAST_ROWS
from inc_mp_plugin.targets import get_target

_BASELINES = ("random", "prefix", "uniform")


class Recipe(Keys):
    """Everything that `inc-mp tune` needs to know: keys that are checked together."""

    @field_validator("formats")
    @classmethod
    def _formats_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            if get_format(name).is_integer:
                message = (
                    f"{name} is an integer, which INC has no FP8 configuration for; give a floating-point "
                    "format (recipes/digits shows how integers are planned from Python)"
                )
                raise ValueError(message)
        return names

    @field_validator("loss")
    @classmethod
    def _loss_is_a_function(cls, loss: str) -> str:
        module, _, name = loss.rpartition(":")
        if loss != AUTO and not (module and name.isidentifier()):
            message = (
                f"{loss!r} is not a loss; give {AUTO}, or module:function of a Python file beside the recipe"
            )
            raise ValueError(message)
        return loss

    @field_validator("targets")
    @classmethod
    def _targets_are_known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            get_target(name)
            if names.count(name) > 1:
                message = f"{name} is given more than once"
                raise ValueError(message)
        return names

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Recipe:
        check_formats((self.model.dtype, *self.formats))
        check_knobs(self.tau, self.gain_fraction, self.budget, self.kl)
        fault = self._strategy_fault() or self._target_fault() or self._heldout_fault() or spread_fault(self)
        if fault:
            raise ValueError(fault)
        return self

    def _strategy_fault(self) -> str:
        strategy = self.strategy
        gain = self.gain_fraction or self.budget
        if strategy in _BASELINES and (gain or (self.tau is None and self.kl is None)):
            only = "give kl or tau, neither gain_fraction nor budget"
            return f"strategy {strategy} is held to a threshold: {only}"
        if self.confidence and strategy != "ip_mse":
            return (
                "confidence makes ip_mse keep to an interval's upper end and goes with no other strategy; "
                f"with {strategy} give confidence=null"
            )
        return self._rows_fault()

    def _rows_fault(self) -> str:
        """Say that an interval of the KL divergence needs more rows, before any is measured."""
        if not (self.confidence and self.kl) or self.model.weights == IN_MEMORY:
            return ""
        samples, rows = self.calibration.samples, self.run.estimator
        count = samples if rows == "sample" else -(-samples // self.calibration.batch_size)
        if count >= LEAST_ROWS[rows]:
            return ""
        noun = "samples" if rows == "sample" else "batches"
        needed = f"confidence of a kl needs at least {LEAST_ROWS[rows]} {noun}, and calibration has {count}"
        return f"{needed}; give more samples, smaller batches, or run: {{estimator: sample}}"

    def _target_fault(self) -> str:
        in_memory = self.model.weights == IN_MEMORY  # a plan made in Python may have scales of its own
        for target in map(get_target, self.targets):
            if not set(self.formats) <= set(target.formats) or self.model.dtype != (
                target.base or self.model.dtype
            ):
                return (
                    f"target {target.name} runs {', '.join(target.formats)} beside "
                    f"{target.base or 'any base format'}, not {', '.join(self.formats)} beside "
                    f"{self.model.dtype}; change formats, model.dtype or targets"
                )
            if not in_memory and self.scale_method and self.scale_method not in target.scale_methods:
                return unknown(
                    f"scale_method of target {target.name}", self.scale_method, target.scale_methods
                )
        if self.kv_cache == "fp8" and not any(get_target(name).device == "hpu" for name in self.targets):
            return "kv_cache: fp8 is of Gaudi; add a target with such a cache: optimum-habana or vllm-gaudi"
        first = get_target(self.targets[0]) if self.targets else None
        if first and first.device is None and self.validation and self.validation.through == "inc":
            return (
                f"validation.through: inc lowers ops through INC, whose rounding is not that of target "
                f"{first.name}; give hooks, or leave it out"
            )
        if in_memory:
            return ""
        if self.noise == "measured" and not (first and first.scale_methods):
            return "noise: measured rounds as the first of targets does in FP8; give an FP8 target first"
        return ""

    def _heldout_fault(self) -> str:
        if self.validation and _place(self.validation) == _place(self.calibration):
            return "validation.data is calibration.data; held-out samples must be others"
        held = self.tau is not None or self.kl is not None
        if self.verify and not (self.validation and held and self.strategy == "ip_mse"):
            in_memory = self.model.weights == IN_MEMORY
            heldout = "validation, held-out batches" if in_memory else "validation: {data: HELDOUT.jsonl}"
            return f"verify measures ip_mse plans on held-out samples; give kl or tau, and {heldout}"
        if self.verify and self.validation and self.validation.samples < LEAST_SAMPLES:
            return (
                f"validation.samples is {self.validation.samples}; verify needs at least {LEAST_SAMPLES} to "
                "say how far a measurement may be off; 64 or more are better"
            )
        if self.verify and self.kv_cache == "fp8":
            return (
                "verify measures as INC does on a CPU, where there is no KV cache: kv_cache: fp8 would go "
                "unmeasured; give verify: false, or kv_cache: bf16"
            )
        return ""


def _place(section: DataSection) -> tuple[Path, str | None, str | None]:
    return section.data.resolve(), section.split, section.subset


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read a recipe and apply `key=value` overrides (`calibration.samples=32`).

    Raises:
        InputError: the file is missing or not YAML, or keys or values are not allowed; the text has
            one line per fault.
    """
    path = Path(or_shipped(str(path)))
    content = read_recipe(path)
    look_beside(content, path.parent)
    given = (override.partition("=") for override in overrides)
    return parse_recipe(
        content, [f"{key}{equals}{or_shipped(text)}" for key, equals, text in given], str(path)
    )


def parse_recipe(content: dict[str, Any], overrides: list[str], source: str) -> Recipe:
    """Check the content of a recipe after overrides; see `load_recipe`.

    Args:
        content: content of the YAML file or of recipe.json; it is changed.
        overrides: each `key=value`.
        source: name of the file, for errors.

    Raises:
        InputError: keys or values are not allowed; the text has one line per fault.
    """
    content = store.unmarked(content, "recipe", "ops")
    for override in overrides:
        _override(content, override)
    # Thresholds among the overrides replace all thresholds of the recipe; `tau=null` takes one away.
    overridden = set(map(key_of, overrides)) & set(KNOBS)
    if any(content.get(knob) is not None for knob in overridden):
        for knob in set(KNOBS) - overridden:
            content.pop(knob, None)
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [_with_origin(fault, overrides, source) for fault in error.errors()]
        raise InputError("\n".join(lines)) from error


def recipe_in_memory(content: dict[str, Any]) -> Recipe:
    """Check keys that were given in Python, by the same rules; errors name no file.

    Args:
        content: as that of a recipe; the model's weights are `IN_MEMORY`.

    Raises:
        InputError: keys or values are not allowed; the text has one line per fault.
    """
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        lines = [in_one_line(fault, Recipe) for fault in error.errors()]
        raise InputError("\n".join(lines)) from error


def _override(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        message = f"{override!r} is not an override; write key=value, such as kl=0.001"
        raise InputError(message)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        message = f"the value of {override!r} is not YAML"
        raise InputError(message) from error
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
        if not isinstance(content, dict):
            message = f"{override!r}: {section} is a value, not a section"
            raise InputError(message)
    content[last] = value


def _with_origin(error: Any, overrides: list[str], source: str) -> str:
    """Say a fault after its origin: the override of the value, or the file and the overrides involved."""
    where = [str(part) for part in error["loc"]]
    keys = {override: key_of(override).split(".") for override in overrides}
    for override, key in reversed(keys.items()):
        if where[: len(key)] == key:
            return f"override {override}: {in_one_line(error, Recipe, given=where == key)}"
    fault = in_one_line(error, Recipe)
    named = [override for override, key in keys.items() if re.search(rf"\b{re.escape(key[-1])}\b", fault)]
    involved = [override for override in named if keys[override][: len(where)] == where]
    return f"{source} with {' '.join(involved)}: {fault}" if involved else f"{source}: {fault}"
