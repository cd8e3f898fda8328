"""gains.json: what every configuration saves, for every objective that can be priced for a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from inc_mp_plugin.core.demands import Demands
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.gain.accelerators import ACCELERATORS, peak
from inc_mp_plugin.gain.configurations import in_large_groups
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.gain.passes import check_context, prompt
from inc_mp_plugin.gain.per_op import bit_operation_gains, mac_gains, memory_gains
from inc_mp_plugin.gain.roofline import Phase, roofline_gains
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.codec import from_json, to_json
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.stages.timing import timing_stage
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import DECODE, PREFILL, Captured
from inc_mp_plugin.targets.timed import timed_formats

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.core.request import Request
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job


def encode(gains: Mapping[str, Gains]) -> store.Json:
    """Write gains of several objectives as gains.json has them."""
    content = {name: to_json(gains_of_objective) for name, gains_of_objective in gains.items()}
    for as_json in content.values():
        del as_json["objective"]  # the key that the gains stand under
    return {"objectives": content}


def _decode(content: store.Json) -> dict[str, Gains]:
    objectives = content["objectives"].items()
    return {name: from_json(Gains, {**as_json, "objective": name}) for name, as_json in objectives}


GAINS = Artefact("gains", _decode, encode)


def gains_stage(
    job: Job, subject: Subject, graph: Graph, sensitivity: Sensitivity, *, demands: Demands, out: Path
) -> dict[str, Gains]:
    """Price memory, MACs and the objective of the job, or read gains.json.

    Args:
        job: the formats, the objective, the device and the request.
        subject: the model.
        graph: from `capture`.
        sensitivity: sensitivities of the ops that may leave the base format.
        demands: demands of the consumers.
        out: folder of the artefacts.

    Raises:
        InputError: the objective cannot be priced for this job.
    """
    formats, objective = job.all_formats, job.objective
    depends_on: store.Json = {
        "graph": store.fingerprint(to_json(graph)),
        "formats": list(formats),
        "device": job.device,
    }
    ties, kept = in_large_groups(graph, demands)
    if ties or kept:
        depends_on["ties"] = store.fingerprint({"ties": [list(tie) for tie in ties], "kept": sorted(kept)})
    if objective == "bit_operations":
        depends_on["objective"] = objective
    if objective == "roofline":
        depends_on["request"] = asdict(request_of(job))
        depends_on["served by"] = _consumer(demands) or "no target"
        depends_on["serving"] = asdict(demands.serving)
    measured: dict[str, Gains] = {}
    if job.timing is not None:
        gains, timing = timing_stage(job, subject, graph, sensitivity, demands=demands, out=out)
        measured = {gains.objective: gains}
        depends_on["timing"] = store.fingerprint(asdict(timing))

    def make() -> dict[str, Gains]:
        gains = _counted(job, graph)
        if objective == "roofline":
            phases = _phases(job, subject, graph, demands)
            gains["roofline"] = roofline_gains(
                phases, formats, job.device, sensitivity.total, ties=ties, kept=kept
            )
        return {**gains, **measured}

    return GAINS.make(out, depends_on, make)


def _counted(job: Job, graph: Graph) -> dict[str, Gains]:
    """Price what is counted in a graph: bytes, MACs where the device has a peak for them, and bits."""
    formats = job.all_formats
    gains = {"memory": memory_gains(graph, formats)}
    if set(formats) <= ACCELERATORS[job.device].flops.keys():
        gains["theoretical_time"] = mac_gains(graph, formats, job.device)
    if job.objective == "bit_operations":
        gains["bit_operations"] = bit_operation_gains(graph, formats)
    return gains


def check_prices(job: Job) -> None:
    """Refuse an objective that cannot be priced for a job, before anything is measured.

    Raises:
        InputError: the device has no peak for a format, there is no request, or time cannot be measured.
    """
    if job.objective == "roofline":
        request_of(job)
    if job.objective in ("roofline", "theoretical_time"):
        for format_name in job.all_formats:
            peak(job.device, format_name)
    if job.timing is not None:
        timed_formats(job.all_formats, job.timing.device)
        get_device(job.timing.device)


def request_of(job: Job) -> Request:
    """Return the request that a job's time is modelled for.

    Raises:
        InputError: there is none.
    """
    if job.request is None:
        message = "objective roofline needs a request; give one, such as request=Request(prompt_tokens=2048)"
        raise InputError(message)
    return job.request


def _consumer(demands: Demands) -> str | None:
    """Name the consumer whose passes are modelled: the first target on Gaudi."""
    names = (name for name in demands.targets if get_target(name).device == "hpu")
    return next(names, None)


def _phases(job: Job, subject: Subject, planned: Graph, demands: Demands) -> list[Phase]:
    """Capture the passes of the request, with the ops that the consumer runs differently in each."""
    import torch

    from inc_mp_plugin.graph.capture import capture

    request, name = request_of(job), _consumer(demands)
    check_context(subject.model, request)
    idle: Mapping[str, frozenset[str]] = {}
    if name is not None:
        idle = get_target(name).lay_out(Captured.of(planned), demands.serving).idle
    cached = demands.cached
    say("Capturing the passes of the request ...")
    whole = capture(subject.model, prompt(subject.model, request))
    phases = [Phase(whole, idle=idle.get(PREFILL, frozenset()), cached=cached)]
    if request.output_tokens:
        step = {"input_ids": torch.zeros(request.batch_size, 1, dtype=torch.long)}
        tokens = request.prompt_tokens + request.output_tokens // 2
        graph = capture(subject.model, step, cached_tokens=tokens)
        phases.append(Phase(graph, request.output_tokens, idle.get(DECODE, frozenset()), cached))
    return phases
