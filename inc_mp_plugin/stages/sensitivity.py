"""sensitivity.json and sensitivity.npz: the effect of rounding each op on the loss of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.runtime import ranks, store
from inc_mp_plugin.runtime.artefact import Artefact
from inc_mp_plugin.runtime.rank_plan import ask
from inc_mp_plugin.runtime.reuse import changes, lasting, numbered, partial, run_stage
from inc_mp_plugin.stages.sensitivity_arrays import from_arrays, to_arrays, to_content

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.core.sensitivity import Sensitivity
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.stages.job import Job

KIND = "sensitivity"
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
    depends_on = {**subject.depends_on, **_noise_settings(job, subject.depends_on, path)}

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
    """
    from inc_mp_plugin.sensitivity.resume import measure_in_steps

    own = f".{ranks.rank()}" if ranks.rank() else ""
    formats = job.formats if job.noise_scales else ()
    settings = {**subject.depends_on, "scales": str(job.noise_scales), "formats": list(formats)}
    return measure_in_steps(
        subject.model,
        graph,
        subject.batches if subject.own_share else ranks.share(subject.batches),
        subject.loss_fn,
        partial=partial(out / f"sensitivity.partial{own}.npz", KIND, settings),
        scales=job.noise_scales,
        formats=formats,
    )


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
    """Read the dependencies of the sensitivities in a folder, without the settings of the noise.

    Raises:
        InputError: sensitivity.json is missing or damaged.
    """
    stored = store.read_json(folder / "sensitivity.json", KIND).get("depends_on", {})
    return {key: value for key, value in lasting(stored).items() if not key.startswith("noise.")}


def _noise_settings(job: Job, measured: Mapping[str, Any], path: Path) -> store.Json:
    if job.noise_scales is not None:
        return {
            "noise.method": job.noise_scales.method,
            "noise.device": job.noise_scales.device,
            "noise.formats": list(job.formats),
        }
    try:
        stored = store.read_json(path, KIND).get("depends_on", {})
    except InputError:  # none yet, or a damaged one: it is about to be written
        return {}
    own = {key: value for key, value in stored.items() if key.startswith("noise.")}
    others = {key: value for key, value in stored.items() if key not in own}
    return {} if changes(others, numbered(KIND, measured)) else own
