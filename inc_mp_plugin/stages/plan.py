"""plan.json: the plan for a job, from gains and sensitivities."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.demands import NO_DEMANDS, Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import OpValues, Plan
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.reuse import numbered
from inc_mp_plugin.solver.planner import IP_MSE, solve
from inc_mp_plugin.stages.gains import encode as encode_gains

if TYPE_CHECKING:
    from inc_mp_plugin.stages.job import Job

# Fields of a plan that stand in sections of plan.json.
_SECTIONS = {"predicted": ("loss_mse", "interval", "nrmse", "gain"), "solver": ("status", "gap", "seconds")}
_KL = {"predicted_kl": "kl", "kl_interval": "kl_interval"}  # in the section `predicted`


def _encode(plan: Plan) -> store.Json:
    content = to_json(plan)
    content["budget"] = content.pop("loss_budget")
    for section, keys in _SECTIONS.items():
        content[section] = {key: content.pop(key) for key in keys}
    content["predicted"] |= {name: content.pop(key) for key, name in _KL.items()}
    return content


def _decode(content: store.Json) -> Plan:
    predicted = dict(content["predicted"])
    # Plans of before 0.2.0 have none.
    kl = {key: predicted.pop(name, None) for key, name in _KL.items()}
    flat = {**content, **predicted, **content["solver"], "loss_budget": content["budget"], **kl}
    return from_json(Plan, flat)


PLAN = Artefact("plan", _decode, _encode)


def plan_stage(
    job: Job,
    losses: Costs,
    gains: Mapping[str, Gains],
    out: Path,
    *,
    correction: float = 1.0,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Plan:
    """Make the plan of a job, or read plan.json.

    Args:
        job: the aim of the plan.
        losses: prices of the ops that may leave the base format.
        gains: gains of every configuration, by objective.
        out: folder of the artefacts.
        correction: factor on the loss budget.
        demands: demands of the consumers.
        values: values of the ops, if the strategy has any.

    Raises:
        InputError: there are no gains of the objective, or no price of a format.
        InfeasibleError: no plan is within the thresholds.
    """
    check_objective(gains, job.objective)
    _check_measured(job, losses)
    for remark in _without_effect(job):
        say(remark)

    def make() -> Plan:
        return make_plan(job, gains[job.objective], losses, correction, demands=demands, values=values)

    depends_on = {
        **plan_depends_on(job, losses, gains, demands=demands, values=values),
        "correction": correction,
    }
    return PLAN.make(out, depends_on, make, {"held_back": dict(demands.kept)})


def _check_measured(job: Job, losses: Costs) -> None:
    """Refuse a yardstick or a noise without measurements, before the plan there is said to be made anew.

    Raises:
        InputError: it was not measured.
    """
    if job.tau is not None or job.constraint == "loss":
        losses.by("loss")
    if job.asks_for_kl:
        losses.by("kl")
    for model in filter(None, (losses.loss, losses.kl)):
        for format_name in job.formats:
            model.row_costs(format_name)


def _without_effect(job: Job) -> Iterator[str]:
    """Say which keys have no effect on the plan, though they may stand in a recipe for other plans."""
    thresholds = [f"{key} {value:g}" for key, value in (("tau", job.tau), ("kl", job.kl)) if value]
    if job.strategy == "uniform":
        yield f"strategy uniform lowers every op that may be: {' and '.join(thresholds)} bounds nothing"
    if job.confidence is not None and not thresholds:
        yield (
            f"confidence {job.confidence:g} holds nothing without kl or tau: it is the level of the interval "
            "that is shown"
        )


def make_plan(
    job: Job,
    gains: Gains,
    losses: Costs,
    correction: float = 1.0,
    *,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> Plan:
    """Make the plan of a job by its strategy.

    Args:
        job: the aim of the plan.
        gains: gains of every configuration, of the job's objective.
        losses: prices of the ops that may leave the base format.
        correction: factor on the loss budget.
        demands: demands of the consumers.
        values: values of the ops, if the strategy has any.

    Raises:
        InputError, InfeasibleError: as `plan_stage`.
    """
    has_least_gain = job.gain_fraction is not None or job.budget is not None
    if job.strategy != IP_MSE and not (has_least_gain and values is not None):
        if job.tau is None and job.kl is None:
            message = (
                f"strategy {job.strategy} is held to a threshold: give kl or tau, neither gain_fraction nor "
                "budget"
            )
            raise InputError(message)
        from inc_mp_plugin.solver.baselines import baseline

        return baseline(
            gains, losses, job.strategy, job.tau, kl=job.kl, seed=job.seed, demands=demands, values=values
        )
    return solve(
        gains,
        losses,
        job.tau,
        kl=job.kl,
        gain_fraction=job.gain_fraction,
        budget=job.budget,
        constraint=job.constraint,
        values=values,
        confidence=job.confidence,
        correction=correction,
        demands=demands,
    )


def plan_depends_on(
    job: Job,
    losses: Costs,
    gains: Mapping[str, Gains],
    *,
    demands: Demands = NO_DEMANDS,
    values: OpValues | None = None,
) -> store.Json:
    """Collect what a plan follows from.

    Args:
        job: the aim of the plan.
        losses: prices of the ops that may leave the base format.
        gains: gains of every configuration, by objective.
        demands: demands of the consumers.
        values: values of the ops, if the strategy has any.
    """
    rows = store.fingerprint({**_rows(losses.sensitivity)})
    follows = {
        **job.goal,
        "sensitivity": rows,
        "noise": losses.noise,
        "gains": store.fingerprint(encode_gains(gains)),
        "values": None if values is None else store.fingerprint(asdict(values)),
        "targets": list(demands.targets),
        "serving": asdict(demands.serving),
    }
    return numbered("plan", follows)


def _rows(sensitivity: Sensitivity) -> store.Json:
    arrays = {"input": sensitivity.input, "weight": sensitivity.weight, **sensitivity.rounding}
    rows: store.Json = {
        "loss": sensitivity.loss.tolist(),
        "rows": {name: array.sum(axis=0).tolist() for name, array in arrays.items()},
    }
    if sensitivity.tokens is not None:
        rows["tokens"] = sensitivity.tokens.tolist()
    return rows if sensitivity.kl is None else {**rows, "kl": _rows(sensitivity.kl)}


def check_objective(gains: Mapping[str, Gains], objective: str) -> None:
    """Refuse an objective without gains.

    Raises:
        InputError: the objective has no gains.
    """
    if objective not in gains:
        message = (
            f"objective {objective!r} is not among the gains of this folder: {', '.join(gains)}. Run "
            f"`inc-mp tune` with objective={objective}; modelled time needs a device with a peak for "
            "every format"
        )
        raise InputError(message)
