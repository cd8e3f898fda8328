"""A folder that `inc-mp tune` wrote: reading it, and doing single stages again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from inc_mp_plugin import artefacts, pipeline, store
from inc_mp_plugin.emission import emit
from inc_mp_plugin.errors import InputError, unknown
from inc_mp_plugin.measurements import TimeValidation
from inc_mp_plugin.plan import Gains, Graph, Plan, Sensitivity, Validation
from inc_mp_plugin.pricing import prices_of, runnable_ops
from inc_mp_plugin.progress import say
from inc_mp_plugin.recipe import Recipe, parse_recipe
from inc_mp_plugin.solver.planner import check_knobs
from inc_mp_plugin.stage import changes
from inc_mp_plugin.subject import Subject, subject_of

PLAN_KEYS = ("tau", "gain_fraction", "objective")


@dataclass(frozen=True)
class Run:
    """The artefacts of a folder, each read when first asked for.

    Reading raises InputError where a file is missing or damaged.
    """

    folder: Path

    @cached_property
    def graph(self) -> Graph:
        """graph.json."""
        return artefacts.load(self.folder / "graph.json", "graph", artefacts.graph_from_json)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """sensitivity.json and sensitivity.npz."""
        path = self.folder / "sensitivity.json"
        sha256 = artefacts.load(path, "sensitivity", lambda content: str(content["arrays_sha256"]))
        arrays = store.read_arrays(path.with_suffix(".npz"), sha256)
        return artefacts.sensitivity_from_arrays(arrays)

    @cached_property
    def able(self) -> Sensitivity:
        """Sensitivities of the ops that every target of the recipe can run in a lower format."""
        return self.sensitivity.of(runnable_ops(self.graph, self.recipe([])))

    @cached_property
    def gains(self) -> dict[str, Gains]:
        """gains.json."""
        return artefacts.load(self.folder / "gains.json", "gains", artefacts.gains_from_json)

    @cached_property
    def plan(self) -> Plan:
        """plan.json."""
        return artefacts.load(self.folder / "plan.json", "plan", artefacts.plan_from_json)

    @cached_property
    def validation(self) -> Validation | None:
        """validation.json, if there is one and it is of this plan."""
        path = self.folder / "validation.json"
        if not path.exists():
            return None
        validation = artefacts.load(path, "validation", artefacts.validation_from_json)
        same = validation.plan.quantized == self.plan.quantized and validation.tau == self.plan.tau
        return validation if same else None

    def recipe(self, overrides: list[str]) -> Recipe:
        """recipe.json, with overrides."""
        content = store.read_json(self.folder / "recipe.json", "recipe")
        del content["schema"]
        return parse_recipe(content, overrides, str(self.folder / "recipe.json"))


def solve_again(folder: Path, overrides: list[str]) -> Plan:
    """plan.json for another tau, gain_fraction or objective, from the stored artefacts.

    Raises:
        InputError: an artefact is missing or damaged, or another key is overridden.
        InfeasibleError: no plan meets the constraint.
    """
    given = [override.partition("=")[0] for override in overrides]
    faults = [unknown("key of solve", key, PLAN_KEYS) for key in given if key not in PLAN_KEYS]
    if faults:
        raise InputError("\n".join([*faults, "for keys of other stages run `inc-mp tune`"]))
    run = Run(folder)
    recipe = run.recipe(overrides)
    before = _formats_before(run)
    plan = pipeline.plan_stage(
        run.able,
        run.gains,
        folder,
        objective=recipe.objective,
        tau=recipe.tau,
        gain_fraction=recipe.gain_fraction,
    )
    if before and before != plan.formats:
        say("The plan has changed: run `inc-mp emit` and `inc-mp validate` for it.")
    return plan


def _formats_before(run: Run) -> object:
    try:
        return run.plan.formats
    except InputError:  # none yet, or a damaged one: it is about to be written
        return None


def validate_again(folder: Path) -> Validation:
    """validation.json of the plan in a folder.

    Raises:
        InputError: an artefact is missing or damaged, or of another model or other data.
    """
    run = Run(folder)
    recipe, subject = _same_subject(run)
    return pipeline.validation_stage(recipe, subject, run.graph, run.able, run.plan, folder)


def validate_time_again(folder: Path, taus: Sequence[float]) -> TimeValidation:
    """time_validation.json: plans at these thresholds, or at half, once and twice the plan's.

    Raises:
        InputError: an artefact is missing or damaged, of another model or other data, or no time was
            measured.
    """
    from inc_mp_plugin.time_validation import validate_time

    for tau in taus:
        check_knobs(tau, None)
    run = Run(folder)
    recipe, subject = _same_subject(run)
    prices = prices_of(recipe, run.able.ops)
    chosen = taus or [run.plan.tau / 2, run.plan.tau, run.plan.tau * 2]
    return validate_time(subject, run.graph, run.able, run.gains, prices, chosen, folder)


def _same_subject(run: Run) -> tuple[Recipe, Subject]:
    """The recipe of a folder and what it names, which must still be what was measured."""
    recipe = run.recipe([])
    subject = subject_of(recipe)
    stored = store.read_json(run.folder / "sensitivity.json", "sensitivity").get("depends_on", {})
    difference = changes(stored, subject.depends_on)
    if difference:
        message = f"{run.folder} is of another state of things ({difference}); run `inc-mp tune` again"
        raise InputError(message)
    return recipe, subject


def emit_again(folder: Path, target: str) -> Path:
    """configs/<target>.json of the plan in a folder.

    Raises:
        InputError: an unknown target, or an artefact that is missing or damaged.
        SelectionError: INC would select other ops than the plan's.
    """
    run = Run(folder)
    return emit(run.plan, run.graph, target, folder)
