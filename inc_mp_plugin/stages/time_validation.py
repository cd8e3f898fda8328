"""Measuring whole plans: does the sum of the gains of their groups hold?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.core.plan import Graph, Plan
from inc_mp_plugin.core.timings import TimedConfiguration, TimedPlan, TimeValidation, Timing
from inc_mp_plugin.evaluate.additivity import timed_groups
from inc_mp_plugin.gain.timing import Candidate
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
    losses: LossModel,
    *,
    gains: Mapping[str, Gains],
    taus: Sequence[float],
    out: Path,
) -> TimeValidation:
    """Time the plans of every objective at every threshold end to end, or read time_validation.json.

    Args:
        job: says how time was measured.
        subject: the model.
        graph: from `capture`.
        losses: prices of the ops that may leave the base format.
        gains: of every objective; those of "empirical_time" predict the times.
        taus: thresholds.
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
    plans = [solve(one, losses, tau) for tau in taus for one in gains.values()]
    wanted = {plan.quantized: Candidate(plan.lowered, 0, total=index) for index, plan in enumerate(plans)}
    wanted.pop((), None)  # nothing to measure: it is the base itself
    depends_on = {
        **timing_depends_on(job, subject),
        "gains": store.fingerprint(encode_gains(gains)),
        "taus": list(taus),
        "plans": store.fingerprint({"all": [list(ops) for ops in wanted]}),
    }

    def make() -> TimeValidation:
        kept = partial(out / "time_validation.partial.npz", "time_validation", depends_on)
        watch = stopwatch_of(job, subject, graph)
        timing = watch.measure(list(wanted.values()), kept)
        timed = dict(zip(wanted, timing.configurations, strict=True))
        validation = _compare_all(plans, gains["empirical_time"], timing, timed, graph)
        kept.remove()
        return validation

    return TIME_VALIDATION.make(out, depends_on, make)


def _compare_all(
    plans: Sequence[Plan],
    measured: Gains,
    timing: Timing,
    timed: Mapping[tuple[str, ...], TimedConfiguration],
    graph: Graph,
) -> TimeValidation:
    compared = [_compare(plan, measured, timed) for plan in plans]
    return TimeValidation(
        timing.device,
        timing.description,
        timing.price_s,
        tuple(one for one in compared if one is not None),
        timed_groups(measured, graph),
    )


def _compare(
    plan: Plan, measured: Gains, timed: Mapping[tuple[str, ...], TimedConfiguration]
) -> TimedPlan | None:
    predicted = measured.total(plan.formats)
    one = timed.get(plan.quantized, TimedConfiguration({}))
    if predicted is None or one.failure:
        why = one.failure or "a configuration of it was not measured on its own"
        say(f"timing: the {plan.objective} plan at tau {plan.tau:.6g} is left out: {why}")
        return None
    return TimedPlan(plan.objective, plan.tau, plan.quantized, *predicted, one.gain_s, one.stderr_s)
