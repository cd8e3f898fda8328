"""Values of EAGL and ALPS for an experiment; those of ALPS on few calibration samples, for it takes long."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inc_mp_plugin.core.plan import ALPS, EAGL, OpValues
from inc_mp_plugin.model.subject import Subject
from inc_mp_plugin.pipeline.data import subject_of
from inc_mp_plugin.pipeline.folder import Run
from inc_mp_plugin.pipeline.resolve import value_scales
from inc_mp_plugin.stages.op_values import values_are_there, values_stage


def values_of_ops(run: Run, samples: int) -> list[OpValues]:
    """Measure the values of both methods, or read what was measured before.

    Args:
        run: of the folder.
        samples: calibration samples for ALPS, at most.
    """
    job = replace(run.job, value_scales=value_scales(run.recipe))
    subject, folder = _for_alps(run, samples)
    eagl = values_stage(job, run.subject, run.graph, run.folder, method=EAGL)
    alps = values_stage(job, subject, run.graph, folder, method=ALPS)
    return [values for values in (eagl, alps) if values is not None]


def alps_samples_left(run: Run, samples: int) -> int:
    """Count the samples that ALPS has to run on: none if its values are there.

    Args:
        run: of the folder.
        samples: calibration samples for ALPS, at most.
    """
    subject, folder = _for_alps(run, samples)
    job = replace(run.job, value_scales=value_scales(run.recipe))
    if values_are_there(job, subject, folder, ALPS):
        return 0
    return min(samples, run.recipe.calibration.samples)


def calibrated_on(samples: int) -> tuple[str, ...]:
    """Return the overrides of a recipe for few calibration samples, of which no interval is asked for.

    Args:
        samples: calibration samples.

    Example:
        >>> calibrated_on(2)
        ('calibration.samples=2', 'confidence=null')
    """
    return f"calibration.samples={samples}", "confidence=null"


def _for_alps(run: Run, samples: int) -> tuple[Subject, Path]:
    """Return the model with its first calibration samples, and the folder of their values."""
    if run.recipe.calibration.samples <= samples:
        return run.subject, run.folder
    fewer = replace(run, overrides=(*run.overrides, *calibrated_on(samples)))
    subject, whole = subject_of(fewer.recipe, allow_code=run.allow_code), run.subject
    folder = run.folder / "experiments" / f"calibrated-on-{samples}-samples"
    return replace(subject, load_model=lambda: whole.model), folder
