"""Sections on what was left out, and on how to make everything again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from inc_mp_plugin.core.literals import IN_MEMORY
from inc_mp_plugin.report.blocks import Block, Code, Section, Table
from inc_mp_plugin.report.found import Found, Json


def left_out(found: Found) -> Section:
    """Make the section on what could not be quantized, and why."""
    blocks: list[Block] = []
    unsupported, measured = found.graph.unsupported, set(found.losses.ops)
    never_ran = [op.name for op in found.graph.ops if op.name not in measured]
    unable = [op for op in found.losses.ops if op not in set(found.able)]
    if unsupported:
        rows = tuple((one.name, one.kind, one.reason) for one in unsupported)
        caption = "Products and convolutions of the graph that cannot be quantized."
        blocks.append(Table(caption, ("name", "kind", "reason"), rows, left=3))
    if never_ran:
        caption = "Ops that calibration never ran; they stay in the base format."
        blocks.append(Table(caption, ("op",), tuple((name,) for name in never_ran)))
    if unable:
        caption = "Ops that a target, or the device that is timed, does not run in a lower format."
        blocks.append(Table(caption, ("op",), tuple((name,) for name in unable)))
    if not blocks:
        blocks.append("Nothing: every matrix product and convolution of the graph is an op of the plan.")
    return Section("left-out", "What was not quantizable", tuple(blocks))


def reproduce(found: Found) -> Section:
    """Make the section with the versions, the commands and the recipe."""
    measured = found.depends_on.get("sensitivity", {})
    versions = dict(measured.get("versions", {}))
    if measured.get("made_by"):
        name, _, version = measured["made_by"].partition(" ")
        versions[name] = version
    rows = tuple((name, str(version)) for name, version in sorted(versions.items()))
    return Section(
        "reproduce",
        "Versions and commands",
        (
            Table(
                "Versions that the sensitivities were measured with.", ("package", "version"), rows, left=2
            ),
            Code("Commands that make this folder again.", "\n".join(commands(found))),
            Code(_recipe_name(found), json.dumps(_given(found.recipe), indent=2, sort_keys=True)),
        ),
    )


def commands(found: Found) -> Iterator[str]:
    """Yield the commands that were called, in order, as far as the artefacts tell."""
    folder, made = shlex.quote(found.folder), found.depends_on
    if _in_memory(found):
        yield f"# in Python: inc_mp_plugin.tune(model, batches, ..., out={found.folder!r})"
    else:
        yield f"inc-mp tune recipe.yaml --out {folder}"
    keys = ("objective", "strategy", "seed", "tau", "gain_fraction", "budget", "noise", "confidence")
    goal = {key: made.get("plan", {}).get(key) for key in keys}
    other = {key: value for key, value in goal.items() if value != found.recipe.get(key)}
    changed = [f"{key}={value}" for key, value in other.items() if value is not None]
    if changed:
        yield f"inc-mp solve {folder} {' '.join(changed)}"
    if found.frontiers is not None:
        yield f"inc-mp frontier {folder}{_options(made.get('frontier', {}), 'points', 'draws')}"
    if found.validation is not None:
        yield f"inc-mp validate {folder}"
    if found.time is not None:
        taus = "".join(f" --tau {tau!r}" for tau in made.get("time_validation", {}).get("taus", ()))
        yield f"inc-mp validate {folder} --time{taus}"
    for one in found.experiments:
        settings = made.get(f"experiments/{one.name}-{one.objective}", {})
        options = "".join(f" --task {shlex.quote(task)}" for task in settings.get("tasks", ()))
        options += _options(settings, "draws", "points", "samples", "include_path", "limit")
        yield f"inc-mp experiment {folder} {one.name} --objective {one.objective}{options}"
    yield f"inc-mp report {folder}"


def _options(settings: Json, *keys: str) -> str:
    given = [(key, settings[key]) for key in keys if settings.get(key) is not None]
    return "".join(f" --{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in given)


def _in_memory(found: Found) -> bool:
    return bool(found.recipe.get("model", {}).get("weights") == IN_MEMORY)


def _recipe_name(found: Found) -> str:
    if _in_memory(found):
        return "recipe.json: what was asked for in Python; model and samples were in memory."
    return "recipe.yaml (JSON is YAML)."


def _given(value: Any) -> Any:
    """Return a recipe without the keys that were not given."""
    if not isinstance(value, dict):
        return value
    return {key: _given(inner) for key, inner in value.items() if inner is not None and inner != {}}
