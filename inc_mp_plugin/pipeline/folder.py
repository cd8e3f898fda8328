"""A folder that `inc-mp tune` wrote: its artefacts, each read at its first use."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import Demands, kept_lines
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.everything import Everything
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.knobs import constraint_of
from inc_mp_plugin.core.literals import Strategy, Yardstick
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.pipeline.data import subject_of
from inc_mp_plugin.pipeline.next_command import (
    PLAN_KEYS,
    refuse_dry_run,
    refuse_model_in_memory,
    solve_overrides,
)
from inc_mp_plugin.pipeline.recipe import Recipe, parse_recipe
from inc_mp_plugin.pipeline.resolve import job_of
from inc_mp_plugin.report.staying import Stay, staying
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.reuse import changes
from inc_mp_plugin.solver.everything import price_everything
from inc_mp_plugin.solver.orders import lower_format
from inc_mp_plugin.solver.ties import constrained
from inc_mp_plugin.stages.consumer_scales import held_back_for, with_scales
from inc_mp_plugin.stages.gains import GAINS
from inc_mp_plugin.stages.graph import GRAPH
from inc_mp_plugin.stages.op_values import stored_values
from inc_mp_plugin.stages.plan import PLAN
from inc_mp_plugin.stages.sensitivity import measured_from, read_sensitivity
from inc_mp_plugin.stages.validation import VALIDATION

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Validation
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job
    from inc_mp_plugin.stages.loss_meter import LossMeter


@dataclass(frozen=True)
class Run:
    """The artefacts of a folder, with the recipe's keys overridden by `overrides`.

    `kept_losses` is the folder of measured losses, if another one; `allow_code` lets the file of the recipe's
    own loss run.

    Reading raises InputError where a file is missing or damaged.
    """

    folder: Path
    overrides: tuple[str, ...] = ()
    kept_losses: Path | None = None
    allow_code: bool = False

    def __post_init__(self) -> None:
        """Refuse a folder of a dry run.

        Raises:
            InputError: the folder is one of a dry run.
        """
        refuse_dry_run(self.folder)

    @cached_property
    def recipe(self) -> Recipe:
        """recipe.json, with overrides."""
        path = self.folder / "recipe.json"
        content = store.read_json(path, "recipe")
        return parse_recipe(content, list(self.overrides), str(path))

    @cached_property
    def job(self) -> Job:
        """The recipe, resolved; in a folder of `mp.tune`, with the ops that were allowed there."""
        allowed = store.read_json(self.folder / "recipe.json", "recipe").get("ops")
        return job_of(self.recipe, allowed)

    @cached_property
    def graph(self) -> Graph:
        """graph.json."""
        return GRAPH.read(self.folder)

    @cached_property
    def sensitivity(self) -> Sensitivity:
        """sensitivity.json and sensitivity.npz."""
        return read_sensitivity(self.folder)

    @cached_property
    def losses(self) -> Costs:
        """Prices of the ops that every target can run in a lower format, beside their KV cache."""
        runnable = self.sensitivity.of(self.job.runnable(self.graph))
        scaled = with_scales(runnable, held_back_for(self.job, runnable))
        return Costs(scaled, self.recipe.noise, self.demands.cached)

    @cached_property
    def free_gains(self) -> dict[str, Gains]:
        """gains.json: the gains of every configuration that was priced."""
        return GAINS.read(self.folder)

    @cached_property
    def demands(self) -> Demands:
        """The demands of the recipe's targets on a plan."""
        return self.job.demands(self.graph, held_back_for(self.job, self.sensitivity))

    @cached_property
    def as_planned(self) -> Run:
        """This folder with the keys that its plan was made with; with the recipe's while there is no plan."""
        if not PLAN.path(self.folder).exists():
            return self
        # The plan is there already: nothing is measured for it.
        return replace(self, overrides=(*self.overrides, *self.solved_again(), "verify=false"))

    @property
    def yardstick(self) -> Yardstick:
        """The recipe's own yardstick, as far as it was measured."""
        own = constraint_of(self.job.tau, self.job.kl, self.job.constraint)
        return "kl" if self.losses.loss is None or (own == "kl" and self.losses.kl is not None) else "loss"

    @cached_property
    def gains(self) -> dict[str, Gains]:
        """Gains of the configurations that meet the demands of the recipe's targets."""
        return {name: constrained(gains, self.demands) for name, gains in self.free_gains.items()}

    def values(self, strategy: Strategy) -> OpValues | None:
        """Read eagl.json or alps.json for their strategies; return None for any other strategy."""
        return stored_values(strategy, self.folder, measured_from(self.folder))

    @cached_property
    def held_back(self) -> tuple[str, ...]:
        """The reasons why ops stay in the base format whatever the threshold, one line each."""
        base, reached = self.recipe.model.dtype, set(self.sensitivity.ops)
        missed = {op.name for op in self.graph.ops} - reached
        demanded = self.as_planned.demands
        lines = kept_lines(demanded.kept, base)
        together = {op for tie in demanded.ties if not missed.isdisjoint(tie.ops) for op in tie.ops}
        if missed:
            with_them = len(together - missed)
            also = f", and so do {with_them} ops that share one format with them" if with_them else ""
            lines.append(f"{len(missed)} ops stay in {base}: no sample reached them{also}; give more samples")
        return tuple(lines)

    @cached_property
    def plan(self) -> Plan:
        """plan.json."""
        return PLAN.read(self.folder)

    @cached_property
    def all_losses(self) -> Costs:
        """Prices of all ops that samples reached, with the plan's noise and cache."""
        losses = self.as_planned.losses
        return Costs(self.sensitivity, losses.noise, losses.cached)

    @cached_property
    def stays(self) -> dict[str, Stay]:
        """The reason why each op in the base format stays there."""
        return staying(
            self.plan,
            self.free_gains[self.plan.objective],
            self.all_losses,
            self.graph,
            runnable=self.as_planned.losses.ops,
            kept=self.as_planned.demands.kept,
        )

    @cached_property
    def everything(self) -> Everything:
        """All ops that may leave the base format in the first lower one, priced as the plan was."""
        planned, plan = self.as_planned, self.plan
        ops = [op for op in planned.losses.ops if op not in planned.demands.kept]
        format_name = lower_format(self.free_gains[plan.objective])
        confidence = planned.job.confidence
        return price_everything(planned.losses, ops, format_name, plan.base, confidence=confidence)

    def solved_again(self, **changes: Any) -> list[str]:
        """List the overrides of `inc-mp solve` for the plan of this folder, with these changes."""
        plan, stored = self.plan, {key: getattr(self.recipe, key) for key in PLAN_KEYS}
        depends_on = PLAN.made_from(self.folder)
        # A plan may be older than a key.
        planned = {key: depends_on.get(key, value) for key, value in stored.items()}
        planned |= {"targets": plan.targets, **asdict(plan.serving)}
        return solve_overrides(stored, planned, changes)

    @cached_property
    def validation(self) -> Validation | None:
        """validation.json, if there is one of this plan."""
        if not VALIDATION.path(self.folder).exists():
            return None
        validation = VALIDATION.read(self.folder)
        kl = None if validation.kl is None else validation.kl.threshold
        measured, now = (validation.tau, validation.plan.quantized), (self.plan.tau, self.plan.quantized)
        same = measured == now and (validation.kl is None or kl == self.plan.kl)
        return validation if same else None

    @cached_property
    def subject(self) -> Subject:
        """The model and the samples that the recipe names.

        Raises:
            InputError: model or samples are no longer those that were measured.
        """
        subject = subject_of(self.recipe, allow_code=self.allow_code)
        difference = changes(measured_from(self.folder), subject.depends_on)
        if difference:
            message = (
                f"the artefacts of {self.folder} are out of date ({difference}); run `inc-mp tune` again"
            )
            raise InputError(message)
        return subject

    @cached_property
    def meter(self) -> LossMeter:
        """The meter of losses on the recipe's held-out samples.

        Raises:
            InputError: the recipe names none.
        """
        from inc_mp_plugin.stages.loss_meter import LossMeter

        refuse_model_in_memory(self.recipe.model)
        heldout = self.job.heldout
        if heldout is None:
            message = "the recipe has no validation section; add validation: {data: HELDOUT.jsonl}"
            raise InputError(message)
        out = self.kept_losses or self.folder
        return LossMeter(self.job, heldout, self.subject, self.graph, ops=self.losses.ops, out=out)
