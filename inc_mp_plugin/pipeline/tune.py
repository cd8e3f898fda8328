"""The stages in order, each reused while it is valid: no arithmetic of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.formats import check_formats
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.op_values import METHODS
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.model.heldout import check_data
from inc_mp_plugin.model.subject import (
    subject_in_memory,
    subject_measured_before,
    subject_of,
    with_data_of_all_ranks,
)
from inc_mp_plugin.pipeline.in_memory import Asked, plan_in_memory
from inc_mp_plugin.pipeline.next_command import DRY_RUN, refuse_in_memory
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import plan_together
from inc_mp_plugin.sensitivity.scales import Scales
from inc_mp_plugin.solver.uncertainty import check_confidence
from inc_mp_plugin.stages.files import clear_files, emit
from inc_mp_plugin.stages.gains import (
    Clock,
    clock_of,
    demands_for,
    gains_stage,
    prices_of,
    runnable_ops,
)
from inc_mp_plugin.stages.held_back import held_back_for, scales_of_all, with_scales
from inc_mp_plugin.stages.loss_meter import LossMeter
from inc_mp_plugin.stages.op_values import Low, low_of, scales_of, tasks, values_stage
from inc_mp_plugin.stages.stages import (
    Goal,
    Noise,
    check_objective,
    goal_of,
    graph_stage,
    measure,
    plan_depends_on,
    plan_stage,
    sensitivity_stage,
    solve_goal,
    without_noise,
)
from inc_mp_plugin.stages.validation import validation_stage, verification_stage
from inc_mp_plugin.targets import CPU_QDQ, get_target

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from torch import nn

    from inc_mp_plugin.core.demands import Demands
    from inc_mp_plugin.core.gains import Gains
    from inc_mp_plugin.gain.passes import Request
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.recipe import Recipe


def tune_recipe(recipe: Recipe, out: Path) -> Plan:
    """Run every stage of a recipe in a folder; what is there and still valid is reused.

    Of several processes the first does everything, and all share the samples of the sensitivities.
    """
    subject = subject_of(recipe)
    check_data(recipe)  # rather missing now than after all the rest

    @locked(out)
    def make() -> Plan:
        return _tune_recipe(recipe, subject, out)

    return plan_together(
        make,
        {
            "sensitivity": lambda graph: measure(subject, graph, noise_of(recipe), out),
            **tasks(subject, _low(recipe), out),
        },
    )


def _tune_recipe(recipe: Recipe, subject: Subject, out: Path) -> Plan:
    refuse_in_memory(out)
    clock = clock_of(recipe)
    if clock is not None:
        get_device(clock.device)  # rather missing now than after all the rest
    store.write_artefact(out / "recipe.json", "recipe", recipe.model_dump(mode="json"))
    (out / DRY_RUN).unlink(missing_ok=True)
    graph = graph_stage(subject, out)
    sensitivity = sensitivity_stage(subject, graph, noise_of(recipe), out)
    held_back = held_back_for(sensitivity, recipe)
    sensitivity = with_scales(sensitivity.of(runnable_ops(graph, recipe)), held_back)
    demanded = demands_for(graph, recipe, held_back)
    gains = gains_stage(subject, graph, sensitivity, prices_of(recipe, sensitivity.ops, demanded), out)
    goal = goal_of(recipe)
    values = values_stage(goal.strategy, subject, graph, _low(recipe), out)
    meter = None
    if recipe.validation is not None:
        meter = LossMeter(recipe, recipe.validation, subject, graph, sensitivity, out)
    correction = 1.0
    if recipe.verify and meter is not None:
        loop_meter = meter.on_other_samples()
        correction = verified_correction(loop_meter, gains, sensitivity, goal, demanded, out)
    plan = plan_stage(sensitivity, gains, goal, out, correction, demanded, values)
    clear_files(out, recipe.targets)
    for target in recipe.targets:
        emit(plan, graph, target, out, recipe)
    if meter is not None:
        validation_stage(meter, sensitivity, plan, out)
    return plan


def _low(recipe: Recipe) -> Low:
    """The lower formats; a strategy that rounds nothing itself needs no scales, which a device may lack."""
    return low_of(recipe) if recipe.strategy in METHODS else Low((recipe.model.dtype, *recipe.formats), None)


def noise_of(recipe: Recipe) -> Noise:
    """How a recipe prices rounding; measured noise takes the scales of its first target."""
    if recipe.noise != "measured":
        return Noise(recipe.noise)
    return Noise("measured", scales_of(recipe, get_target(recipe.targets[0])), recipe.formats)


def verified_correction(
    meter: LossMeter,
    gains: Mapping[str, Gains],
    sensitivity: Sensitivity,
    goal: Goal,
    demanded: Demands,
    out: Path,
) -> float:
    """Correction of the loss budget up to which the measured loss is surely within tau."""
    check_objective(gains, goal.objective)
    found = verification_stage(
        meter,
        lambda correction: solve_goal(gains[goal.objective], sensitivity, goal, correction, demanded),
        plan_depends_on(sensitivity, gains, goal, demanded),
        out,
    )
    measured = sum(one.ops > 0 for one in found.rounds)
    say(
        f"verify: {measured} plans measured, the loss budget is corrected by {found.correction:.4g}; the "
        "plan is reported on samples that were not read here"
    )
    return found.correction


def tune(
    model: nn.Module,
    batches: Sequence[Batch] | None,
    *,
    tau: float | None = None,
    gain_fraction: float | None = None,
    budget: float | None = None,
    objective: str = "memory",
    strategy: str = "ip_mse",
    seed: int = 0,
    confidence: float | None = None,
    noise: Noise | None = None,
    scales: Scales | None = None,
    formats: Sequence[str] = ("fp8_e4m3",),
    device: str = "gaudi2",
    request: Request | None = None,
    clock: Clock | None = None,
    loss_fn: LossFunction | None = None,
    allowed: Collection[str] | None = None,
    targets: Sequence[str] = (),
    serving: Serving | None = None,
    out: str | Path,
) -> Plan:
    """Plan a model that is in memory: capture, sensitivities, gains, program.

    Args:
        model: in its base format; it leaves as it came.
        batches: calibration batches, the first of which also serves to capture the graph; with None the
            sensitivities are those that another process measured of this model in `out`. Of several
            processes of torch.distributed each gives its own; the plan is the same in all.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        gain_fraction: instead, the wanted fraction of the largest gain, at the least loss.
        budget: instead, the fraction of what everything costs in the base format that a plan may cost.
        objective: "memory", "theoretical_time", "bit_operations", "roofline" or "empirical_time".
        strategy: "ip_mse"; "eagl" or "alps", which price ops in other ways; or a baseline: "random" (of
            `seed`), "prefix" or "uniform".
        seed: of the order of "random".
        confidence: the loss budget is to hold at the upper end of this interval, such as 0.95.
        noise: how rounding is priced; as the paper does if None.
        scales: how INC will scale to FP8: ops that it has no scale for stay in the base format, and "eagl"
            and "alps" round with them. If None, as on a CPU and on the targets by default.
        formats: formats below the base format.
        device: where modelled time counts.
        request: what time is priced for; the forward pass of the first batch is measured without it.
        clock: where and how time is measured; on the CPU for "empirical_time" without it.
        loss_fn: `loss_fn(model, batch)` returns one loss per sample; the language-model loss if None.
        allowed: names of the ops that may leave the base format; all if None.
        targets: consumers that must be able to run the plan, such as "vllm-gaudi".
        serving: how they serve the model; the defaults if None.
        out: folder of the artefacts; a second call reuses those that are still valid.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError: as the stages.
    """
    folder = Path(out)
    subject = _subject(model, batches, loss_fn, folder)
    if objective == "empirical_time":
        clock = clock or Clock("cpu", TimingSettings())
    consumers = [scales] if scales else scales_of_all(targets, device)
    low = Low((subject.base, *formats), scales or Scales(CPU_QDQ.scale_methods[0], "cpu"))
    goal = Goal(objective, tau, gain_fraction, strategy, seed, confidence, budget)
    _check_goal(goal, low.formats)
    served = serving or Serving()
    asked = Asked(goal, noise or Noise(), low, consumers, device, request, clock, allowed, targets, served)
    return plan_together(
        lambda: plan_in_memory(subject, asked, folder),
        {
            "sensitivity": lambda graph: measure(subject, graph, asked.noise, folder),
            **tasks(subject, low, folder),
        },
    )


def _check_goal(goal: Goal, formats: Sequence[str]) -> None:
    """Refuse what no plan can be made for: rather now than after all that is measured for it."""
    from inc_mp_plugin.pipeline.recipe import Objective, Strategy

    for name, given, known in (
        ("strategy", goal.strategy, Strategy),
        ("objective", goal.objective, Objective),
    ):
        if given not in get_args(known):
            raise InputError(unknown(name, given, get_args(known)))
    check_knobs(goal.tau, goal.gain_fraction, goal.budget)
    check_formats(formats)
    if goal.confidence is not None:
        check_confidence(goal.confidence)


def _subject(
    model: nn.Module, batches: Sequence[Batch] | None, loss_fn: LossFunction | None, folder: Path
) -> Subject:
    if batches is not None:
        return with_data_of_all_ranks(subject_in_memory(model, batches, loss_fn))
    stored = store.read_json(folder / "sensitivity.json", "sensitivity")["depends_on"]
    return subject_measured_before(model, without_noise(stored))
