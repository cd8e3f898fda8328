"""Keys of a recipe that do not go with a model in several places: `run: {device_map, parallel}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inc_mp_plugin.core.literals import IN_MEMORY

if TYPE_CHECKING:
    from inc_mp_plugin.pipeline.recipe import Recipe


def spread_fault(recipe: Recipe) -> str:
    """Say what needs the whole model in one place, although it is to be in several; nothing if that fits."""
    fsdp, auto = recipe.run.parallel == "fsdp", recipe.run.device_map is not None
    if fsdp and auto:
        return "run.device_map is of one process, and run: {parallel: fsdp} of several; give one of them"
    if (fsdp or auto) and recipe.model.weights == IN_MEMORY:
        key = "run: {parallel: fsdp}" if fsdp else "run.device_map"
        return f"{key} loads the model, and this one is in memory; give its name in a recipe of `inc-mp tune`"
    return _device_map_fault(recipe) if auto else ""


def casts_as_used(recipe: Recipe) -> bool:
    """Tell if weights stay in their files, in another format than the base format, until their module runs.

    So it is where little memory is to be taken, and nothing needs the whole model in one place.
    """
    run, model = recipe.run, recipe.model
    asked = run.memory == "low" and run.device_map is None and run.parallel != "fsdp"
    if not asked or model.weights != "trained" or _device_map_fault(recipe):
        return False
    from inc_mp_plugin.libraries.transformers import leaves_weights_in_files
    from inc_mp_plugin.model.adapters import is_adapter
    from inc_mp_plugin.model.checkpoint import is_cast

    name = model.name_or_path
    return not is_adapter(name) and is_cast(name, model.dtype) and leaves_weights_in_files()


def _device_map_fault(recipe: Recipe) -> str:
    if recipe.model.weights == "random":
        return "run.device_map is of weights in files; leave it out, or give weights: trained"
    whole = {
        "strategy: alps": recipe.strategy == "alps",
        "timing": recipe.timing is not None or recipe.objective == "empirical_time",
        "validation through INC": recipe.validation is not None and recipe.validation.through == "inc",
    }
    needs = next((name for name, asked in whole.items() if asked), "")
    if not needs:
        return ""
    hint = "give validation: {through: hooks}" if "INC" in needs else "leave one of them out"
    return f"{needs} needs the whole model in one place, and run.device_map keeps it in several; {hint}"
