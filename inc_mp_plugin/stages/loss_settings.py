"""All that measured losses follow from, however they are measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.runtime.store import fingerprint
from inc_mp_plugin.stages.consumer_scales import measuring_scales

if TYPE_CHECKING:
    from inc_mp_plugin.model.heldout import HeldOut
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job


def loss_settings(job: Job, heldout: HeldOut, subject: Subject, ops: Sequence[str]) -> dict[str, Any]:
    """Collect what measured losses follow from; what measures them adds its own.

    Args:
        job: the formats, and the scale method of INC.
        heldout: the samples.
        subject: the model.
        ops: names of the ops that may leave the base format.
    """
    settings = {
        **subject.depends_on,
        **heldout.identify(),
        "format": job.formats[0],
        "scale_method": job.scale_method,
        "ops": fingerprint({"ops": list(ops)}),
    }
    scales = measuring_scales(job.targets, job.scale_method)
    if scales.per_token:
        settings["scales"] = f"{scales.method} of {scales.device}"
    return settings
