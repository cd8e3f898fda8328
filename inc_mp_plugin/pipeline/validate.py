"""The plan of a folder, measured: its loss on held-out samples, and the time of plans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.knobs import check_knobs
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.runtime.lock import exclusive

if TYPE_CHECKING:
    from inc_mp_plugin.core.results import Validation
    from inc_mp_plugin.core.timings import TimeValidation


@exclusive
def validate_plan(folder: Path, *, allow_code: bool = False) -> Validation:
    """Measure the plan of a folder on held-out samples; see `validation_stage`.

    Raises:
        InputError: an artefact is missing or damaged, or of another model or other data.
    """
    from inc_mp_plugin.stages.validation import validation_stage

    run = Run(folder, allow_code=allow_code)
    return validation_stage(run.meter, run.planned_losses, run.plan, folder)


@exclusive
def validate_time(folder: Path, taus: Sequence[float], *, allow_code: bool = False) -> TimeValidation:
    """Time plans at these thresholds, or at half, once and twice the plan's; see `time_validation_stage`.

    Args:
        folder: of the run.
        taus: the thresholds; empty for those three.
        allow_code: run the file of the recipe's own loss.

    Raises:
        InputError: an artefact is missing or damaged, of another model or other data, or no time was
            measured.
    """
    from inc_mp_plugin.stages.time_validation import time_validation_stage

    for tau in taus:
        check_knobs(tau, None)
    run = Run(folder, allow_code=allow_code)
    subject = run.subject
    taus = taus or [run.plan.tau / 2, run.plan.tau, run.plan.tau * 2]
    return time_validation_stage(
        run.job, subject, run.graph, run.losses, gains=run.gains, taus=taus, out=folder
    )
