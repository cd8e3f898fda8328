"""timing.json: the time that configurations save, measured on a device."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.timings import Timing
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.gain.configurations import free_formats, in_large_groups
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.gain.empirical import candidates, empirical_gains, measured_groups
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import artefact_of
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.reuse import partial
from inc_mp_plugin.targets.timed import runnable_kinds, timed_formats

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job
    from inc_mp_plugin.stages.stopwatch import Stopwatch

# Settings that times do not follow from: the device is named by its description, and `every_group` decides
# on the configurations, which are named themselves.
_NOT_OF_THE_RESULT = ("device", "every_group")

TIMING = artefact_of(Timing, "timing")


def timing_stage(
    job: Job, subject: Subject, graph: Graph, sensitivity: Sensitivity, *, demands: Demands, out: Path
) -> tuple[Gains, Timing]:
    """Measure the time of configurations, of one group per structure or of every group, or read timing.json.

    Args:
        job: the formats, the request, and where and how long time is measured.
        subject: the model.
        graph: from `capture`.
        sensitivity: sensitivities of the ops that may leave the base format.
        demands: demands of the consumers.
        out: folder of the artefacts.

    Returns:
        Gains in seconds, and the measurements behind them.
    """
    settings = job.timing or TimingSettings()
    base, lower = timed_formats(job.all_formats, settings.device)
    ties, kept = in_large_groups(graph, demands)
    kinds = runnable_kinds(settings.device, lower)
    choices = free_formats(graph, set(sensitivity.ops) - kept, (base, lower), kinds)
    groups = measured_groups(graph, choices, sensitivity.total, ties, every_group=settings.every_group)
    configurations = candidates(groups, base)
    depends_on = {
        **timing_depends_on(job, subject),
        "configurations": store.fingerprint(
            {"all": [dict(candidate.formats) for candidate in configurations]}
        ),
    }

    def make() -> Timing:
        partial_file = partial(out, "timing", depends_on)
        return stopwatch_of(job, subject, graph).measure(configurations, partial_file)

    timing = TIMING.make(out, depends_on, make)
    gains = empirical_gains(groups, timing, graph, base)
    for note in dict.fromkeys(group.note for group in gains.groups if group.note):
        say(f"timing: {note}")
    return gains, timing


def stopwatch_of(job: Job, subject: Subject, graph: Graph) -> Stopwatch:
    """Prepare to measure a subject's time: of the job's request, or of its first batch's forward pass.

    Args:
        job: the formats, the request and the settings.
        subject: the model.
        graph: from `capture`.

    Raises:
        InputError: the device is missing, or does not run the lower format.
    """
    from inc_mp_plugin.stages.stopwatch import Stopwatch

    work, settings = job.request or subject.batches[0], job.timing or TimingSettings()
    # On a Gaudi, INC changes the model that is timed for good.
    model = subject.model_to_convert() if settings.device == "hpu" else subject.model
    return Stopwatch(model, graph, work, job.all_formats, subject.batches, settings)


def timing_depends_on(job: Job, subject: Subject) -> store.Json:
    """Collect what measured times follow from, the machine included.

    Raises:
        InputError: the device is missing.
    """
    settings = job.timing or TimingSettings()
    own = {key: value for key, value in asdict(settings).items() if key not in _NOT_OF_THE_RESULT}
    return {
        **subject.depends_on,
        "formats": list(job.all_formats),
        "request": asdict(job.request) if job.request else None,
        "timing.device": get_device(settings.device).description,
        **{f"timing.{key}": value for key, value in own.items()},
    }
