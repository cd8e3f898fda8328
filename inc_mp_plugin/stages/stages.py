"""Graph, sensitivities and plan: made in a folder, or reused while they are valid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.op_values import OpValues
from inc_mp_plugin.core.plan import Graph, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.runtime import artefacts, ranks, store
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import ask
from inc_mp_plugin.runtime.reuse import changes, lasting, numbered, partial, run_stage
from inc_mp_plugin.sensitivity.scales import Scales
from inc_mp_plugin.solver.planner import IP_MSE, solve

if TYPE_CHECKING:
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.recipe import Recipe

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Noise:
    """How rounding is priced: the model of the noise and, if it is measured, scales and formats."""

    model: str = "uniform"
    scales: Scales | None = None
    formats: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """What a plan is wanted for; see `solver.planner.solve` and `solver.baselines.baseline`."""

    objective: str
    tau: float | None = None
    gain_fraction: float | None = None
    strategy: str = IP_MSE
    seed: int = 0
    confidence: float | None = None
    budget: float | None = None


def goal_of(recipe: Recipe) -> Goal:
    """Read the goal of a plan from a recipe."""
    return Goal(
        recipe.objective,
        recipe.tau,
        recipe.gain_fraction,
        recipe.strategy,
        recipe.seed,
        recipe.confidence,
        recipe.budget,
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


def sensitivity_stage(subject: Subject, graph: Graph, noise: Noise, out: Path) -> Sensitivity:
    """sensitivity.json and sensitivity.npz; an interrupted run goes on where it stopped.

    What was measured with rounding errors serves models of the noise without them, too.
    """
    path, arrays = out / "sensitivity.json", out / "sensitivity.npz"
    depends_on = {**subject.depends_on, **_noise_settings(noise, subject.depends_on, path)}

    def decode(content: Json) -> Sensitivity:
        return artefacts.sensitivity_from_arrays(store.read_arrays(arrays, content["arrays_sha256"]))

    def make() -> tuple[Sensitivity, Json]:
        ask("sensitivity", graph)
        sensitivity = measure(subject, graph, noise, out)
        sha256 = store.write_arrays(arrays, artefacts.sensitivity_arrays(sensitivity))
        content = artefacts.sensitivity_to_json(sensitivity, sha256)
        reached = set(sensitivity.ops)
        missed = [op.name for op in graph.ops if op.name not in reached]
        return sensitivity, {**content, "not_reached": missed}

    return replace(run_stage(path, "sensitivity", depends_on, decode, make), noise=noise.model)


def measure(subject: Subject, graph: Graph, noise: Noise, out: Path) -> Sensitivity:
    """Measure sensitivities, with the other processes if there are any; see `measure_in_steps`."""
    from inc_mp_plugin.sensitivity.resume import measure_in_steps

    own = f".{ranks.rank()}" if ranks.rank() else ""
    settings = {**subject.depends_on, "scales": str(noise.scales), "formats": list(noise.formats)}
    return measure_in_steps(
        subject.model,
        graph,
        subject.batches if subject.own_share else ranks.share(subject.batches),
        subject.loss_fn,
        partial(out / f"sensitivity.partial{own}.npz", "sensitivity", settings),
        scales=noise.scales,
        formats=noise.formats if noise.scales else (),
    )


def without_noise(depends_on: Mapping[str, Any]) -> Json:
    """Leave out arithmetic and settings of measured noise from what sensitivities depend on."""
    return {key: value for key, value in lasting(depends_on).items() if not key.startswith("noise.")}


def _noise_settings(noise: Noise, measured: Json, path: Path) -> Json:
    if noise.scales is not None:
        return {
            "noise.method": noise.scales.method,
            "noise.device": noise.scales.device,
            "noise.formats": list(noise.formats),
        }
    try:
        stored = store.read_json(path, "sensitivity").get("depends_on", {})
    except InputError:  # none yet, or a damaged one: it is about to be written
        return {}
    own = {key: value for key, value in stored.items() if key.startswith("noise.")}
    others = {key: value for key, value in stored.items() if key not in own}
    return {} if changes(others, numbered("sensitivity", measured)) else own


def solve_goal(
    gains: Gains,
    sensitivity: Sensitivity,
    goal: Goal,
    correction: float = 1.0,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Plan:
    """The plan for a goal, by its strategy, held to what its consumers demand.

    `values` are those of the strategy, if it has any.
    """
    gain_is_wanted = goal.gain_fraction is not None or goal.budget is not None
    if goal.strategy != IP_MSE and not (gain_is_wanted and values is not None):
        if goal.tau is None:
            message = f"strategy {goal.strategy} is held to a threshold: give tau, neither gain nor budget"
            raise InputError(message)
        from inc_mp_plugin.solver.baselines import baseline

        return baseline(
            gains, sensitivity, goal.strategy, goal.tau, seed=goal.seed, demands=demands, values=values
        )
    return solve(
        gains,
        sensitivity,
        goal.tau,
        gain_fraction=goal.gain_fraction,
        budget=goal.budget,
        values=values,
        confidence=goal.confidence,
        correction=correction,
        demands=demands,
    )


def plan_depends_on(
    sensitivity: Sensitivity,
    gains: Mapping[str, Gains],
    goal: Goal,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Json:
    """What a plan follows from."""
    rows = store.fingerprint({"loss": sensitivity.loss.tolist(), "rows": _rows(sensitivity)})
    follows = {
        **asdict(goal),
        "sensitivity": rows,
        "noise": sensitivity.noise,
        "gains": store.fingerprint(artefacts.gains_to_json(gains)),
        "values": None if values is None else store.fingerprint(asdict(values)),
        "targets": list(demands.targets),
        "serving": asdict(demands.serving),
    }
    return numbered("plan", follows)


def _rows(sensitivity: Sensitivity) -> Json:
    rows = {"input": sensitivity.input, "weight": sensitivity.weight, **sensitivity.rounding}
    return {name: one.sum(axis=0).tolist() for name, one in rows.items()}


def plan_stage(
    sensitivity: Sensitivity,
    gains: dict[str, Gains],
    goal: Goal,
    out: Path,
    correction: float = 1.0,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Plan:
    """plan.json.

    Raises:
        InputError: the objective has no gains here.
    """
    check_objective(gains, goal.objective)

    def make() -> tuple[Plan, Json]:
        plan = solve_goal(gains[goal.objective], sensitivity, goal, correction, demands, values)
        return plan, {**artefacts.plan_to_json(plan), "held_back": dict(demands.kept)}

    depends_on = {**plan_depends_on(sensitivity, gains, goal, demands, values), "correction": correction}
    return run_stage(out / "plan.json", "plan", depends_on, artefacts.plan_from_json, make)


def check_objective(gains: Mapping[str, Gains], objective: str) -> None:
    """Refuse an objective that has no gains.

    Raises:
        InputError: it has none.
    """
    if objective not in gains:
        message = (
            f"objective {objective!r} is not among the gains of this folder: {', '.join(gains)}. Run "
            f"`inc-mp tune` with objective={objective}; modelled time needs a device with a peak for "
            "every format"
        )
        raise InputError(message)
