"""Our scores: KL with labels drawn from the model, the paper's loss MSE, EAGL, ALPS."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from subject import SCALES, Subject
from task import FORMAT, Task

import inc_mp_plugin as mp
from inc_mp_plugin.core.kl_model import KLModel
from inc_mp_plugin.core.loss_model import LossModel
from inc_mp_plugin.runtime.store import Partial


@dataclass(frozen=True)
class Scores:
    """Scores of ops by name, the CPU seconds that each took, and the predicted KL of ops."""

    scores: dict[str, dict[str, float]]
    seconds: dict[str, float]
    kl: KLModel


def own_scores(task: Task, subject: Subject, *, quick: bool) -> Scores:
    """Score all ops by all of our methods, on the calibration batches; `quick` leaves ALPS out."""
    model, graph, batches = subject.model, subject.graph, subject.calibration
    noise = {"scales": SCALES, "formats": (FORMAT,)}
    seconds: dict[str, float] = {}
    with timed(seconds, "kl"):
        kl = mp.measure_sensitivity(model, graph, batches, yardstick="kl", **noise)
    with timed(seconds, "loss"):
        loss = mp.measure_sensitivity(model, graph, batches, **noise)
    with timed(seconds, "eagl"):
        eagl = mp.measure_eagl(model, graph, ("fp32", FORMAT), SCALES)
    scores = {
        "kl": KLModel(kl, "measured").costs(FORMAT),
        "kl modelled": KLModel(kl, "uniform").costs(FORMAT),
        "loss": LossModel(loss, "measured").costs(FORMAT),
        "loss modelled": LossModel(loss, "uniform").costs(FORMAT),
        "eagl": eagl.values[FORMAT],
    }
    if not quick:
        with timed(seconds, "alps"):
            scores["alps"] = alps(subject)
    ours = {name: {op: values[op] for op in task.elements} for name, values in scores.items()}
    return Scores(ours, seconds, KLModel(kl, "measured"))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Note the CPU seconds of what runs inside a `with`."""
    start = time.process_time()
    yield
    seconds[name] = round(time.process_time() - start, 1)


def alps(subject: Subject) -> dict[str, float]:
    """Run ALPS without training: once over the calibration for each op."""
    with tempfile.TemporaryDirectory() as folder:
        values = mp.measure_alps_without_training(
            subject.model,
            subject.graph,
            subject.calibration,
            None,
            formats=(FORMAT,),
            partial=Partial(Path(folder) / "alps.npz", "alps"),
            scales=SCALES,
        )
    return dict(values.values[FORMAT])
