"""sensitivity.json and sensitivity.npz: the effect of rounding each op on the loss of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.model.batches import batch_size, is_packed
from inc_mp_plugin.runtime import ranks, store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.disk import need_on_disk
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.rank_plan import ask
from inc_mp_plugin.runtime.reuse import changes, lasting, numbered, partial, run_stage
from inc_mp_plugin.stages.sensitivity_arrays import from_arrays, to_arrays, to_content

if TYPE_CHECKING:
    from inc_mp_plugin.core.estimate import Estimate
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job

KIND = "sensitivity"
_OPTIONAL = ("noise.", "kl.", "loss.")  # begin the names of settings that some measurements have
_NO_LOSS = "loss.left_out"
HASH = Artefact(KIND, lambda content: str(content["arrays_sha256"]))  # of the arrays beside it


def sensitivity_stage(job: Job, subject: Subject, graph: Graph, out: Path) -> Sensitivity:
    """Measure sensitivities, or read them; an interrupted run goes on where it stopped.

    Sensitivities that hold measured rounding errors serve the other models of the noise, too.

    Args:
        job: the model of the noise, with its formats and scales.
        subject: the model and its calibration batches.
        graph: from `capture`.
        out: folder of the artefacts.

    Raises:
        NonFiniteError: a value is NaN or infinite; the text names the op.
    """
    path, arrays = out / "sensitivity.json", out / "sensitivity.npz"
    depends_on = {**subject.depends_on, **_optional(job, subject.depends_on, path)}

    def decode(content: store.Json) -> Sensitivity:
        return from_arrays(store.read_arrays(arrays, content["arrays_sha256"]))

    def make() -> tuple[Sensitivity, store.Json]:
        ask(KIND, graph)
        sensitivity = measure(job, subject, graph, out)
        sha256 = store.write_arrays(arrays, to_arrays(sensitivity))
        content = to_content(sensitivity, sha256)
        reached = set(sensitivity.ops)
        missed = [op.name for op in graph.ops if op.name not in reached]
        return sensitivity, {**content, "not_reached": missed}

    return run_stage(path, KIND, depends_on, decode=decode, make=make)


def measure(job: Job, subject: Subject, graph: Graph, out: Path) -> Sensitivity:
    """Measure sensitivities, with the other processes if there are any; see `measure_in_steps`.

    Args:
        job: the model of the noise, with its formats and scales.
        subject: the model and its calibration batches.
        graph: from `capture`.
        out: folder of the file that holds the finished batches.

    Raises:
        InputError: the weights are to be spread over processes, but they cannot be; see `sharded`.
    """
    if job.parallel != "fsdp":
        return _measure(job, subject, graph, out)
    from inc_mp_plugin.model.sharded import sharded

    routed = [op.name for op in graph.ops if op.share < 1]
    if routed:
        message = (
            f"experts ({few(routed)}) cannot be measured with run: {{parallel: fsdp}}; give run: "
            "{parallel: samples}"
        )
        raise InputError(message)
    # Other stages measure the whole model in the first process, so this is a model of its own.
    with sharded(subject.load_model(), repeated_blocks(graph)) as model:
        spread = replace(subject, load_model=lambda: model, load_batches=lambda: subject.batches)
        return _measure(job, spread, graph, out)


def _measure(job: Job, subject: Subject, graph: Graph, out: Path) -> Sensitivity:
    from inc_mp_plugin.sensitivity.resume import measure_in_steps

    formats = job.formats if job.noise_scales else ()
    loss, kl = yardsticks_of(job, subject)
    settings = {**subject.depends_on, "scales": str(job.noise_scales), "formats": list(formats)}
    settings |= {"loss": loss, "kl": None if kl is None else asdict(kl)}
    batches = subject.batches if subject.own_share else ranks.share(subject.batches)
    rows = sum(map(batch_size, batches)) * (loss + (kl is not None))
    # Of each op and row: some numbers, and three for each format; a file is written beside the old one.
    needed = 2 * 8 * rows * len(graph.ops) * (3 + 3 * len(formats))
    need_on_disk(out, needed, "what is measured of every op and sample")
    return measure_in_steps(
        subject.model,
        graph,
        batches,
        subject.loss_fn,
        partial=partial(out, KIND, settings),
        loss=loss,
        kl=kl,
        scales=job.noise_scales,
        formats=formats,
        memory=job.memory,
    )


def yardsticks_of(job: Job, subject: Subject) -> tuple[bool, Estimate | None]:
    """Decide what is measured: the loss or not, and how the KL divergence is estimated, if at all.

    Where KL is only the default, it is measured of models that predict a distribution, and whose loss is
    their own.
    """
    loss, kl = "loss" in job.yardsticks, "kl" in job.yardsticks
    if kl and not job.asks_for_kl:
        own = "loss_fn says what counts" if subject.loss_fn is not None else _no_distribution(subject)
        # All processes decide alike, those without a batch, too.
        said = (content.decode().strip() for content in ranks.exchange(f" {own}".encode()))
        why = next(filter(None, said), "")
        if why:
            say(f"the yardstick is the loss, not the KL divergence: {why}")
            loss, kl = True, False
    return loss, job.estimate if kl else None


def _no_distribution(subject: Subject) -> str:
    """Say why a model has no KL divergence; nothing if it has."""
    import torch

    if not subject.batches:  # this one of several processes has none
        return ""
    from inc_mp_plugin.libraries.torch import evaluating
    from inc_mp_plugin.model.batches import samples
    from inc_mp_plugin.model.distributions import distributions

    batch = subject.batches[0]
    try:
        with evaluating(subject.model), torch.no_grad():
            distributions(subject.model, batch if is_packed(batch) else samples(batch, 0, 1))
    except InputError as error:
        return str(error).partition(";")[0]
    return ""


def no_losses(ops: Sequence[str]) -> Sensitivity:
    """Make sensitivities of 0: no format of these ops loses anything."""
    import numpy as np

    from inc_mp_plugin.core.sensitivity import Sensitivity

    nothing = np.zeros((1, len(ops)))
    return Sensitivity(tuple(ops), np.ones(1), nothing, nothing, second={"input": nothing})


def read_sensitivity(folder: Path) -> Sensitivity:
    """Read sensitivity.npz, if its hash is the one in sensitivity.json.

    Raises:
        InputError: a file is missing or damaged.
    """
    return from_arrays(store.read_arrays(folder / "sensitivity.npz", HASH.read(folder)))


def measured_from(folder: Path) -> store.Json:
    """Read the dependencies of the sensitivities in a folder, without the settings of noise and yardsticks.

    Raises:
        InputError: sensitivity.json is missing or damaged.
    """
    stored = store.read_json(folder / "sensitivity.json", KIND).get("depends_on", {})
    return {key: value for key, value in lasting(stored).items() if not key.startswith(_OPTIONAL)}


def noise_of(folder: Path) -> tuple[str, str] | None:
    """Name the scales whose rounding errors were measured in a folder, method and device; None without any.

    Raises:
        InputError: sensitivity.json is missing or damaged.
    """
    stored = store.read_json(folder / "sensitivity.json", KIND).get("depends_on", {})
    return (stored["noise.method"], stored["noise.device"]) if "noise.method" in stored else None


def _optional(job: Job, measured: Mapping[str, Any], path: Path) -> store.Json:
    """Collect the settings of the noise and the yardsticks; those of the file if it holds as much."""
    needed: store.Json = {}
    if job.noise_scales is not None:
        needed["noise.method"] = job.noise_scales.method
        needed["noise.device"] = job.noise_scales.device
        needed["noise.formats"] = list(job.formats)
    if "kl" in job.yardsticks:
        needed |= {f"kl.{key}": value for key, value in asdict(job.estimate).items()}
    without = {} if "loss" in job.yardsticks else {_NO_LOSS: True}
    try:
        stored = store.read_json(path, KIND).get("depends_on", {})
    except InputError:  # none yet, or a damaged one: it is about to be written
        return {**needed, **without}
    own = {key: value for key, value in stored.items() if key.startswith(_OPTIONAL)}
    others = {key: value for key, value in stored.items() if key not in own}
    holds = all(own.get(key) == value for key, value in needed.items()) and (without or _NO_LOSS not in own)
    return own if holds and not changes(others, numbered(KIND, measured)) else {**needed, **without}
