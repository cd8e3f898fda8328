"""time_validation.json: whole plans, timed and compared with the sum of the gains of their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.costs import Costs
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Yardstick
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.timings import TimedConfiguration, TimedPlan, TimeValidation
from inc_mp_plugin.evaluate.additivity import timed_groups
from inc_mp_plugin.gain.paired_timing import Candidate
from inc_mp_plugin.report.text import threshold
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.reuse import partial
from inc_mp_plugin.solver.planner import solve
from inc_mp_plugin.stages.gains import encode as encode_gains
from inc_mp_plugin.stages.timing import stopwatch_of, timing_depends_on

if TYPE_CHECKING:
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job


TIME_VALIDATION = artefact_of(TimeValidation, "time_validation")


def time_validation_stage(
    job: Job,
    subject: Subject,
    graph: Graph,
    losses: Costs,
    *,
    gains: Mapping[str, Gains],
    thresholds: Sequence[tuple[Yardstick, float]],
    out: Path,
) -> TimeValidation:
    """Time the plans of every objective at every threshold end to end, or read time_validation.json.

    Args:
        job: device, formats and request of the measurement.
        subject: the model.
        graph: from `capture`.
        losses: prices of the ops that may leave the base format.
        gains: gains of every objective; those of "empirical_time" predict the times.
        thresholds: tau of the yardstick "loss", or kl.
        out: folder of the artefacts.

    Raises:
        InputError: no time was measured in this folder.
    """
    if job.timing is None or "empirical_time" not in gains:
        message = (
            f"{out} holds no measured time; run `inc-mp tune` with objective=empirical_time, or with a "
            "timing section"
        )
        raise InputError(message)
    plans = [_plan_at(g, losses, *threshold) for threshold in thresholds for g in gains.values()]
    candidates = {plan.quantized: Candidate(plan.lowered, 0, total=i) for i, plan in enumerate(plans)}
    candidates.pop((), None)  # the base itself, which needs no measurement
    depends_on = {
        **timing_depends_on(job, subject),
        "gains": store.fingerprint(encode_gains(gains)),
        "taus": [value for yardstick, value in thresholds if yardstick == "loss"],
        "kls": [value for yardstick, value in thresholds if yardstick == "kl"],
        "plans": store.fingerprint({"all": [list(ops) for ops in candidates]}),
    }

    def make() -> TimeValidation:
        partial_file = partial(out, "time_validation", depends_on)
        timing = stopwatch_of(job, subject, graph).measure(list(candidates.values()), partial_file)
        timed = dict(zip(candidates, timing.configurations, strict=True))
        compared = [_compare(plan, gains["empirical_time"], timed) for plan in plans]
        groups = timed_groups(gains["empirical_time"], graph)
        clock = (timing.device, timing.description, timing.price_s)
        return TimeValidation(*clock, tuple(filter(None, compared)), groups)

    return TIME_VALIDATION.make(out, depends_on, make)


def _plan_at(gains: Gains, losses: Costs, yardstick: Yardstick, value: float) -> Plan:
    return solve(gains, losses, kl=value) if yardstick == "kl" else solve(gains, losses, value)


def _compare(
    plan: Plan, measured: Gains, timed: Mapping[tuple[str, ...], TimedConfiguration]
) -> TimedPlan | None:
    predicted = measured.total(plan.formats)
    configuration = timed.get(plan.quantized, TimedConfiguration({}))
    if predicted is None or configuration.failure:
        why = configuration.failure or "the configuration of one of its groups was not measured"
        say(f"timing: the {plan.objective} plan at {threshold(plan)} is left out: {why}")
        return None
    measured_s = (configuration.gain_s, configuration.stderr_s)
    level = plan.tau if plan.kl is None else plan.kl
    return TimedPlan(plan.objective, level or 0.0, plan.quantized, *predicted, *measured_s, plan.constraint)
