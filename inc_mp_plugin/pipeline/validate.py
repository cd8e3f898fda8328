"""The plan of a folder, measured: its loss on held-out samples, and the time of plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.core.literals import THROUGH, Yardstick
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.lock import exclusive

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Validation
    from inc_mp_plugin.core.timings import TimeValidation


@exclusive
def validate_plan(folder: Path, *, through: str | None = None, allow_code: bool = False) -> Validation:
    """Measure the plan of a folder on held-out samples; see `validation_stage`.

    Args:
        folder: of the run.
        through: what lowers the ops, "inc" or "hooks"; None for what the recipe says.
        allow_code: run the file of the recipe's own loss.

    Raises:
        InputError: an artefact is missing or damaged, or of another model or other data.
    """
    from inc_mp_plugin.stages.validation import validation_stage

    if through is not None and through not in THROUGH:
        raise InputError(unknown("way to measure", through, THROUGH))
    run = Run(folder, allow_code=allow_code)
    if through is not None and run.recipe.validation is not None:
        run = replace(run, overrides=(f"validation.through={through}",))
    return validation_stage(run.meter, run.as_planned.losses, run.plan, folder)


@exclusive
def validate_time(
    folder: Path, taus: Sequence[float], kls: Sequence[float] = (), *, allow_code: bool = False
) -> TimeValidation:
    """Time plans at these thresholds, or at half, once and twice the plan's; see `time_validation_stage`.

    Args:
        folder: of the run.
        taus: thresholds of the loss.
        kls: thresholds of the KL divergence; without any of both, those three are taken.
        allow_code: run the file of the recipe's own loss.

    Raises:
        InputError: an artefact is missing or damaged, of another model or other data, or no time was
            measured.
    """
    from inc_mp_plugin.stages.time_validation import time_validation_stage

    for tau in taus:
        check_knobs(tau, None)
    for kl in kls:
        check_knobs(None, None, kl=kl)
    run = Run(folder, allow_code=allow_code)
    subject = run.subject
    plan = run.plan
    thresholds: list[tuple[Yardstick, float]] = [("loss", tau) for tau in taus]
    thresholds += [("kl", kl) for kl in kls]
    if not thresholds:
        own = plan.tau if plan.constraint == "loss" else plan.kl or plan.predicted_kl
        thresholds = [(plan.constraint, (own or 0.0) * part) for part in (0.5, 1.0, 2.0)]
    return time_validation_stage(
        run.job, subject, run.graph, run.losses, gains=run.gains, thresholds=thresholds, out=folder
    )
