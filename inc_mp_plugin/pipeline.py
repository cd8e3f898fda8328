"""The stages in order, each reused while it is valid: no arithmetic of its own."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin import artefacts, store
from inc_mp_plugin.emission import emit
from inc_mp_plugin.errors import InputError
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.plan import Gains, Graph, Plan, Sensitivity, Validation
from inc_mp_plugin.pricing import Clock, Prices, clock_of, gains_stage, prices_of, runnable_ops
from inc_mp_plugin.progress import say
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.stage import run_stage
from inc_mp_plugin.subject import (
    Subject,
    data_settings,
    heldout_batches,
    subject_in_memory,
    subject_of,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import nn

    from inc_mp_plugin.batches import Batch
    from inc_mp_plugin.losses import LossFunction
    from inc_mp_plugin.recipe import Recipe
    from inc_mp_plugin.request import Request

Json = dict[str, Any]


def tune_recipe(recipe: Recipe, out: Path) -> Plan:
    """Run every stage of a recipe in a folder; what is there and still valid is reused."""
    clock = clock_of(recipe)
    if clock is not None:
        get_device(clock.device)  # rather missing now than after all the rest
    store.write_artefact(out / "recipe.json", "recipe", recipe.model_dump(mode="json"))
    subject = subject_of(recipe)
    graph = graph_stage(subject, out)
    sensitivity = sensitivity_stage(subject, graph, out)
    sensitivity = sensitivity.of(runnable_ops(graph, recipe))
    gains = gains_stage(subject, graph, sensitivity, prices_of(recipe, sensitivity.ops), out)
    plan = plan_stage(
        sensitivity,
        gains,
        out,
        objective=recipe.objective,
        tau=recipe.tau,
        gain_fraction=recipe.gain_fraction,
    )
    for target in recipe.targets:
        emit(plan, graph, target, out)
    if recipe.validation is not None:
        validation_stage(recipe, subject, graph, sensitivity, plan, out)
    return plan


def tune(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    tau: float | None = None,
    gain_fraction: float | None = None,
    objective: str = "memory",
    formats: Sequence[str] = ("fp8_e4m3",),
    device: str = "gaudi2",
    request: Request | None = None,
    clock: Clock | None = None,
    loss_fn: LossFunction | None = None,
    allowed: Collection[str] | None = None,
    out: str | Path,
) -> Plan:
    """Plan a model that is in memory: capture, sensitivities, gains, program.

    Args:
        model: in its base format; it leaves as it came.
        batches: calibration batches, the first of which also serves to capture the graph.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        gain_fraction: instead, the wanted fraction of the largest gain, at the least loss.
        objective: "memory", "theoretical_time", "roofline" or "empirical_time".
        formats: formats below the base format.
        device: where modelled time counts.
        request: what time is priced for; the forward pass of the first batch is measured without it.
        clock: where and how time is measured; on the CPU for "empirical_time" without it.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
        allowed: names of the ops that may leave the base format; all if None.
        out: folder of the artefacts; a second call reuses those that are still valid.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError: as the stages.
    """
    folder = Path(out)
    subject = subject_in_memory(model, batches, loss_fn)
    graph = graph_stage(subject, folder)
    sensitivity = sensitivity_stage(subject, graph, folder)
    if allowed is not None:
        sensitivity = sensitivity.of(allowed)
    if objective == "empirical_time" and clock is None:
        clock = Clock("cpu", TimingSettings())
    prices = Prices(
        (subject.base, *formats), sensitivity.ops, device, request, objective == "roofline", clock
    )
    gains = gains_stage(subject, graph, sensitivity, prices, folder)
    return plan_stage(
        sensitivity,
        gains,
        folder,
        objective=objective,
        tau=tau,
        gain_fraction=gain_fraction,
    )


def graph_stage(subject: Subject, out: Path) -> Graph:
    """graph.json."""

    def make() -> tuple[Graph, Json]:
        from inc_mp_plugin.graph.capture import capture

        if not subject.batches:
            message = "no calibration batch was given; at least one is needed"
            raise InputError(message)
        say("Capturing the graph ...")
        graph = capture(subject.model, subject.batches[0])
        say(f"{len(graph.ops)} ops in {len(graph.groups)} groups")
        return graph, artefacts.graph_to_json(graph)

    return run_stage(out / "graph.json", "graph", subject.depends_on, artefacts.graph_from_json, make)


def sensitivity_stage(subject: Subject, graph: Graph, out: Path) -> Sensitivity:
    """sensitivity.json and sensitivity.npz; an interrupted run goes on where it stopped."""
    arrays = out / "sensitivity.npz"

    def decode(content: Json) -> Sensitivity:
        return artefacts.sensitivity_from_arrays(store.read_arrays(arrays, content["arrays_sha256"]))

    def make() -> tuple[Sensitivity, Json]:
        from inc_mp_plugin.sensitivity.resume import measure_in_steps

        sensitivity = measure_in_steps(
            subject.model,
            graph,
            subject.batches,
            subject.loss_fn,
            store.Partial(out / "sensitivity.partial.npz", store.fingerprint(subject.depends_on)),
        )
        sha256 = store.write_arrays(arrays, artefacts.sensitivity_arrays(sensitivity))
        return sensitivity, artefacts.sensitivity_to_json(sensitivity, sha256)

    return run_stage(out / "sensitivity.json", "sensitivity", subject.depends_on, decode, make)


def plan_stage(
    sensitivity: Sensitivity,
    gains: dict[str, Gains],
    out: Path,
    *,
    objective: str,
    tau: float | None,
    gain_fraction: float | None,
) -> Plan:
    """plan.json."""
    if objective not in gains:
        message = (
            f"objective {objective!r} is not among the gains of this folder: {', '.join(gains)}. Run "
            f"`inc-mp tune` with objective={objective}; modelled time needs a device with a peak for "
            "every format"
        )
        raise InputError(message)

    def make() -> tuple[Plan, Json]:
        plan = solve(gains[objective], sensitivity, tau, gain_fraction=gain_fraction)
        return plan, artefacts.plan_to_json(plan)

    seen = {"total": sensitivity.total, "loss_ms": sensitivity.loss_ms}
    depends_on = {
        "sensitivity": store.fingerprint(seen),
        "gains": store.fingerprint(artefacts.gains_to_json(gains)),
        "objective": objective,
        "tau": tau,
        "gain_fraction": gain_fraction,
        "version": metadata.version("inc-mp-plugin"),
    }
    return run_stage(out / "plan.json", "plan", depends_on, artefacts.plan_from_json, make)


def validation_stage(
    recipe: Recipe,
    subject: Subject,
    graph: Graph,
    sensitivity: Sensitivity,
    plan: Plan,
    out: Path,
) -> Validation:
    """validation.json."""
    section = recipe.validation
    if section is None:
        message = "the recipe has no validation section; add validation: {data: HELDOUT.jsonl}"
        raise InputError(message)
    depends_on = {
        **subject.depends_on,
        **data_settings("validation", section),
        "random_plans": section.random_plans,
        "seed": section.seed,
        "formats": list(recipe.formats),
        "plan": store.fingerprint(dict(plan.formats)),
        "tau": plan.tau,
    }

    def make() -> tuple[Validation, Json]:
        from inc_mp_plugin.validation import validate_through_inc

        say("Quantizing with INC, to measure what was predicted ...")
        validation = validate_through_inc(
            subject,
            heldout_batches(recipe, section),
            graph,
            sensitivity,
            plan,
            low=next((plan.formats[op] for op in plan.quantized), recipe.formats[0]),
            count=section.random_plans,
            seed=section.seed,
            partial=store.Partial(out / "validation.partial.npz", store.fingerprint(depends_on)),
        )
        return validation, artefacts.validation_to_json(validation)

    return run_stage(out / "validation.json", "validation", depends_on, artefacts.validation_from_json, make)
