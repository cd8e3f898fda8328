"""Training, trial by trial: what was trained is kept, and never trained again."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from digits import Digits, Network, load, loss_fn
from torch import nn

from inc_mp_plugin.qat.finetune import FineTuned, FineTuning, finetune
from inc_mp_plugin.qat.layers import STATISTICS, in_formats, quantized, rounded_ops
from inc_mp_plugin.runtime.reuse import run_stage
from inc_mp_plugin.runtime.store import Partial, fingerprint, read_arrays, write_arrays

BASE, LOWER, ENDS = "int4", "int2", "int8"
KEPT = frozenset({"stem", "head"})  # first and last op stay in 8 bits, as in the paper
_CALIBRATION_IMAGES = 200


@dataclass(frozen=True, slots=True)
class Training:
    """So many epochs, starting at this learning rate."""

    epochs: int
    learning_rate: float

    def of(self, model: nn.Module, data: Digits, seed: int, description: str = "") -> FineTuned:
        """Train a copy of a model; the seed is that of order and moves of the images."""
        settings = FineTuning(self.learning_rate, weight_decay=5e-4)
        return finetune(model, data.epochs(self.epochs, seed), loss_fn, settings, description=description)


@dataclass(frozen=True, slots=True)
class Trial:
    """How well a model does: shares of images that are told right, and mean cross entropy in nats.

    Of the training images and of the test images, each as they are and moved by a pixel to four sides.
    """

    training_accuracy: float
    training_loss: float
    accuracy: float
    loss: float
    seconds: float


def tried(model: nn.Module, seconds: float) -> Trial:
    """Examine a model that took so long to train."""
    training, test = load()
    return Trial(*_examined(model, training), *_examined(model, test), seconds)


def _examined(model: nn.Module, data: Digits) -> tuple[float, float]:
    images, labels = data.moved()
    with torch.no_grad():
        logits = model.eval()(images)
    right = (logits.argmax(dim=1) == labels).double().mean()
    return float(right), float(nn.functional.cross_entropy(logits, labels))


def calibration() -> list[torch.Tensor]:
    """Images that steps start from."""
    return [load()[0].images[:_CALIBRATION_IMAGES]]


def full_precision(folder: Path, training: Training, seed: int) -> tuple[nn.Module, Trial]:
    """The network in FP32, trained from nothing."""
    model = Network(seed)

    def train() -> FineTuned:
        return training.of(model, load()[0], _seed_of_data(seed, 0), f"seed {seed}: FP32")

    return _kept(folder / "fp32", {"training": astuple(training), "seed": seed}, model, train)


def base(folder: Path, training: Training, seed: int, model: nn.Module) -> tuple[nn.Module, Trial]:
    """The network with all ops in the base format, first and last in 8 bits, fine-tuned from FP32."""
    names = [name for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    formats = {name: ENDS if name in KEPT else BASE for name in names}
    start = quantized(model, formats, calibration())

    def train() -> FineTuned:
        return training.of(start, load()[0], _seed_of_data(seed, 1), f"seed {seed}: {BASE}")

    depends_on = {"training": astuple(training), "formats": formats, "start": state_hash(start)}
    return _kept(folder / BASE, depends_on, start, train)


class Mixes:
    """Trials of the base model with some ops lowered, each fine-tuned alike; equal ones are trained once.

    After an interrupt those that are done are read again.
    """

    def __init__(
        self, path: Path, model: nn.Module, training: Training, seed: int, steps: str = STATISTICS
    ) -> None:
        """Start from this model; `steps` are those of `in_formats`."""
        self.model, self.training, self.steps = model, training, steps
        self.seed = _seed_of_data(seed, 2)
        key = {"model": state_hash(model), "training": astuple(training), "seed": self.seed, "steps": steps}
        self.partial = Partial(path, fingerprint(key))
        self.trials = {name: Trial(*row.tolist()) for name, row in self.partial.load().items()}
        self.trained = 0

    def trial(self, lowered: Collection[str]) -> Trial:
        """How well the model does with these ops in the lower format."""
        name = " ".join(op for op in rounded_ops(self.model) if op in lowered) or "none"
        if name not in self.trials:
            start = time.perf_counter()
            mix = in_formats(self.model, dict.fromkeys(lowered, LOWER), calibration(), steps=self.steps)
            result = self.training.of(mix, load()[0], self.seed)
            self.trials[name] = tried(result.model, time.perf_counter() - start)
            self.trained += 1
            self.partial.save({key: np.array(astuple(one)) for key, one in self.trials.items()})
        return self.trials[name]


def state_hash(model: nn.Module) -> str:
    """Hash of all weights, statistics and steps."""
    return fingerprint({name: value.tolist() for name, value in model.state_dict().items()})


def _kept(
    path: Path, depends_on: Mapping[str, Any], model: nn.Module, train: Callable[[], FineTuned]
) -> tuple[nn.Module, Trial]:
    """Train, and write weights and trial; or read what was written for the same dependencies."""
    arrays = path.with_suffix(".npz")

    def decode(content: dict[str, Any]) -> tuple[nn.Module, Trial]:
        state = read_arrays(arrays, content["sha256_of_arrays"])
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        return model.eval(), Trial(**content["trial"])

    def make() -> tuple[tuple[nn.Module, Trial], dict[str, Any]]:
        result = train()
        trial = tried(result.model, result.seconds)
        state = {name: value.numpy() for name, value in result.model.state_dict().items()}
        found = {"trial": as_json(trial), "sha256_of_arrays": write_arrays(arrays, state)}
        return (result.model, trial), found

    return run_stage(
        path.with_suffix(".json"), "digits_model", as_lists(depends_on), decode=decode, make=make
    )


def as_json(trial: Trial) -> dict[str, float]:
    """A trial as JSON."""
    return dict(zip(Trial.__dataclass_fields__, astuple(trial), strict=True))


def as_lists(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dependencies as they come back from JSON, where a tuple is a list."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _seed_of_data(seed: int, stage: int) -> int:
    """Order and moves of the images are others in every seed and stage."""
    return 1000 * seed + stage
