"""Sections on the ops that were left out, and on how to make everything again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from typing import Any

from inc_mp_plugin.report.artefacts import Json, RunArtefacts
from inc_mp_plugin.report.blocks import Blocks, Code, Table


def left_out(run: RunArtefacts) -> Blocks:
    """Make the tables of what could not be quantized, and why."""
    measured, runnable = set(run.losses.ops), set(run.runnable)
    products = tuple((product.name, product.kind, product.reason) for product in run.graph.unsupported)
    never_ran = tuple((op.name,) for op in run.graph.ops if op.name not in measured)
    never_lower = tuple((op,) for op in run.losses.ops if op not in runnable)
    unsupported = "Products and convolutions of the graph that cannot be quantized."
    not_run = "Ops that a target, or the device that is timed, does not run in a lower format."
    tables = (
        Table(unsupported, ("name", "kind", "reason"), products, left=3),
        Table("Ops that calibration never ran; they stay in the base format.", ("op",), never_ran),
        Table(not_run, ("op",), never_lower),
    )
    nothing = "Nothing: every matrix product and convolution of the graph is an op of the plan."
    return tuple(table for table in tables if table.rows) or (nothing,)


def reproduce(run: RunArtefacts) -> Blocks:
    """Make the table of the versions, the commands and the recipe."""
    measured = run.depends_on.get("sensitivity", {})
    versions = dict(measured.get("versions", {}))
    if measured.get("made_by"):
        name, _, version = measured["made_by"].partition(" ")
        versions[name] = version
    rows = tuple((name, str(version)) for name, version in sorted(versions.items()))
    title = "recipe.yaml (JSON is YAML)."
    if run.in_memory:
        title = "recipe.json: what was asked for in Python; model and samples were in memory."
    return (
        Table("Versions that the sensitivities were measured with.", ("package", "version"), rows, left=2),
        Code("Commands that make this folder again.", "\n".join(commands(run))),
        Code(title, json.dumps(_without_absent(run.recipe), indent=2, sort_keys=True)),
    )


def commands(run: RunArtefacts) -> Iterator[str]:
    """Yield the commands that were called, in order, as far as the artefacts tell."""
    folder, depends_on = shlex.quote(run.folder), run.depends_on
    if run.in_memory:
        yield f"# in Python: inc_mp_plugin.tune(model, batches, ..., out={run.folder!r})"
    else:
        yield f"inc-mp tune recipe.yaml --out {folder}"
    keys: tuple[str, ...] = ("objective", "strategy", "seed", "tau", "kl", "gain_fraction", "budget")
    keys += ("constraint", "noise", "confidence")
    plan = depends_on.get("plan", {})
    goal = {key: plan.get(key) for key in keys} | _consumers(plan)
    other = {key: value for key, value in goal.items() if value != run.recipe.get(key)}
    changed = [f"{key}={_written(value)}" for key, value in other.items() if value is not None]
    if changed:
        yield f"inc-mp solve {folder} {' '.join(map(shlex.quote, changed))}"
    if run.frontiers is not None:
        yield f"inc-mp frontier {folder}{_options(depends_on.get('frontier', {}), 'points', 'draws')}"
    if run.validation is not None and not run.in_memory:
        yield f"inc-mp validate {folder}"
    if run.time is not None:
        given = depends_on.get("time_validation", {})
        options = "".join(
            f" --{key} {value!r}" for key in ("tau", "kl") for value in given.get(f"{key}s", ())
        )
        yield f"inc-mp validate {folder} --time{options}"
    for experiment in run.experiments:
        settings = depends_on.get(f"experiments/{experiment.name}-{experiment.objective}", {})
        options = "".join(f" --task {shlex.quote(task)}" for task in settings.get("tasks", ()))
        options += _options(settings, "draws", "points", "samples", "include_path", "limit")
        yield f"inc-mp experiment {folder} {experiment.name} --objective {experiment.objective}{options}"
    yield f"inc-mp report {folder}"


def _consumers(plan: Json) -> Json:
    """Return the consumers that a plan is for, and how they run, as keys of a recipe."""
    return {"targets": plan["targets"], **plan.get("serving", {})} if plan.get("targets") else {}


def _written(value: Any) -> str:
    """Write a value as an override has it."""
    return json.dumps(value) if isinstance(value, list | bool) else str(value)


def _options(settings: Json, *keys: str) -> str:
    options = [(key, settings[key]) for key in keys if settings.get(key) is not None]
    return "".join(f" --{key.replace('_', '-')} {shlex.quote(str(value))}" for key, value in options)


def _without_absent(value: Any) -> Any:
    """Return a recipe without the keys that have no value."""
    if not isinstance(value, dict):
        return value
    return {key: _without_absent(inner) for key, inner in value.items() if inner is not None and inner != {}}
