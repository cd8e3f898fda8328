"""The keys of a recipe as Python gives them, beside a model and samples that are in memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.knobs import KNOBS, check_knobs
from inc_mp_plugin.core.literals import IN_MEMORY, THROUGH
from inc_mp_plugin.core.numbers import is_number
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.model.heldout import HeldOutBatches
from inc_mp_plugin.model.plain_batches import plain_batches
from inc_mp_plugin.pipeline.recipe import recipe_in_memory
from inc_mp_plugin.pipeline.sections import TimingSection, ValidationSection

if TYPE_CHECKING:
    from inc_mp_plugin.pipeline.recipe import Recipe

_OF_VALIDATION = ("data", "random_plans", "seed", "through")


def recipe_of(keys: Mapping[str, Any], base: str, name: str = "") -> Recipe:
    """Make a recipe of keys: the same names, defaults and checks as in a file.

    Args:
        keys: of a recipe, without model and calibration; `request` and `timing` as values of their classes
            or as mappings, `validation` from `heldout_batches`.
        base: the base format.
        name: of the model.

    Raises:
        InputError: keys or values are not allowed; the text has one line per fault.
    """
    check_knobs(**{knob: keys.get(knob) for knob in KNOBS})
    _check_types(keys)
    given: dict[str, Any] = {key: _content(value) for key, value in keys.items()}
    given["run"] = given.get("run") or {}
    batches = keys.get("validation")
    if isinstance(batches, HeldOutBatches):
        given["validation"] = {
            "data": "in memory, held out",
            "samples": batches.samples(verify=keys.get("verify", False)),
            "random_plans": batches.random_plans,
            "seed": batches.seed,
            "through": batches.through,
        }
    model = {"name_or_path": name, "dtype": base, "weights": IN_MEMORY}
    return recipe_in_memory({**given, "model": model, "calibration": {"data": "in memory"}})


def heldout_batches(given: Any) -> HeldOutBatches | None:
    """Read `validation`: held-out batches, or a mapping with the batches as its `data`; None if not given.

    Raises:
        InputError: these are no batches, or the mapping has other keys than `data`, `random_plans`, `seed`
            and `through`, or values of other kinds.
    """
    if given is None or isinstance(given, HeldOutBatches):
        return given
    keys = dict(given) if isinstance(given, Mapping) else {"data": given}
    others = [key for key in keys if key not in _OF_VALIDATION]
    if others or "data" not in keys:
        fault = f"holds the key {others[0]!r}" if others else "has no data"
        message = (
            f"validation {fault}; it must be held-out batches, such as [batch], or a mapping of "
            f"{', '.join(_OF_VALIDATION)}, with such batches as its data"
        )
        raise InputError(message)
    try:
        batches = plain_batches(keys.pop("data"))
    except InputError as error:
        message = f"validation: {error}"
        raise InputError(message) from error
    through = keys.pop("through", THROUGH[0])
    if through not in THROUGH:
        message = f"validation.through is {through!r}; it must be {', '.join(THROUGH[:-1])} or {THROUGH[-1]}"
        raise InputError(message)
    for key, value in keys.items():
        if not isinstance(value, int) or isinstance(value, bool):
            message = f"validation.{key} is {value!r}; it must be a whole number"
            raise InputError(message)
    defaults = {key: ValidationSection.model_fields[key].default for key in _OF_VALIDATION[1:3]}
    return HeldOutBatches(batches, **{**defaults, **keys}, through=through)


def _check_types(keys: Mapping[str, Any]) -> None:
    """Refuse texts where a file, which holds nothing else, may say a number or a truth value."""
    for key in ("confidence", "verify_confidence"):
        if keys.get(key) is not None and not is_number(keys[key]):
            message = f"{key} is {keys[key]!r}; it must be a number, such as 0.95"
            raise InputError(message)
    for key in ("verify", "reuse_cache"):
        if not isinstance(keys.get(key, False), bool):
            message = f"{key} is {keys[key]!r}; it must be True or False"
            raise InputError(message)


def _content(value: Any) -> Any:
    """Return a value as a file has it."""
    if isinstance(value, TimingSettings):
        return {key: part for key, part in asdict(value).items() if key in TimingSection.model_fields}
    if isinstance(value, Request):
        return asdict(value)
    return dict(value) if isinstance(value, Mapping) else value
