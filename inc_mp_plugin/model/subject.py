"""What is to be planned: a model and its calibration data, and what identifies them."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.batches import map_tensors
from inc_mp_plugin.model.loading import (
    file_fingerprint,
    load_batches,
    load_config,
    load_model,
    model_fingerprint,
    random_model,
)
from inc_mp_plugin.pipeline.next_command import refuse_model_in_memory
from inc_mp_plugin.runtime import ranks

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.pipeline.sections import CalibrationSection, ModelSection, ValidationSection

Json = dict[str, Any]

_CLOSURES = WeakKeyDictionary[FunctionType, str]()
_FORMAT_OF = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Subject:
    """What is to be planned: a model and its calibration batches, loaded when first needed.

    `depends_on` identifies them (hashes and settings); `base` is the format the model runs in.
    `own_share` says that of several processes each has batches of its own, not all the same ones.
    """

    depends_on: Json
    base: str
    load_model: Callable[[], nn.Module]
    load_batches: Callable[[], Sequence[Batch]]
    loss_fn: LossFunction | None = None
    own_share: bool = False

    @cached_property
    def model(self) -> nn.Module:
        """The model."""
        return self.load_model()

    @cached_property
    def batches(self) -> Sequence[Batch]:
        """The calibration batches."""
        return self.load_batches()


def subject_of(recipe: Recipe) -> Subject:
    """The model and the calibration data that a recipe names.

    Raises:
        InputError: they were in memory.
    """
    refuse_model_in_memory(recipe.model)
    model, data = recipe.model, recipe.calibration
    return Subject(
        depends_on={
            "model": model_fingerprint(model.name_or_path, trust_remote_code=model.trust_remote_code),
            "dtype": model.dtype,
            "weights": model.weights,
            "config": dict(model.config),
            "tokenizer": model.tokenizer,
            **data_settings("calibration", data),
            "versions": versions(),
        },
        base=model.dtype,
        load_model=lambda: _model(model),
        load_batches=lambda: load_samples(model, data, data.data, data.samples),
    )


def subject_in_memory(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFunction | None) -> Subject:
    """A model and batches that are there already, identified by their content."""
    tensors: list[Any] = []
    map_tensors(list(batches), tensors.append)
    return Subject(
        depends_on={
            "model": _hash(dict(model.state_dict()).values()),
            "architecture": _hash_text(f"{model} {getattr(model, 'config', '')}"),
            "data": _hash(tensors),
            "loss_fn": _identity(loss_fn),
            "versions": versions(),
        },
        base=base_format(model),
        load_model=lambda: model,
        load_batches=lambda: batches,
        loss_fn=loss_fn,
        own_share=True,
    )


def with_data_of_all_ranks(subject: Subject) -> Subject:
    """The same, identified by the batches of every process."""
    if ranks.size() == 1:
        return subject
    everywhere = ranks.exchange(subject.depends_on["data"].encode())
    return replace(subject, depends_on={**subject.depends_on, "data": _hash_text(f"{everywhere}")})


def subject_measured_before(model: nn.Module, depends_on: Json) -> Subject:
    """A model whose sensitivities were measured by another process, from batches that are gone.

    Args:
        model: as it was measured.
        depends_on: what the stored sensitivities follow from.
    """
    now = subject_in_memory(model, (), None)

    def no_batches() -> Sequence[Batch]:
        message = (
            "the stored sensitivities are of another model, of other versions or of other settings "
            "(objective, noise, values): measure again; only tau, gain_fraction and budget may differ"
        )
        raise InputError(message)

    same = {key: now.depends_on[key] for key in ("model", "architecture", "versions")}
    return replace(now, depends_on={**depends_on, **same}, load_batches=no_batches)


def base_format(model: nn.Module) -> str:
    """The format that a model runs in: that of most of its floating-point parameters.

    Raises:
        InputError: it has none, or they are of a format that cannot be a base.
    """
    elements = Counter[str]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            elements[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    name = max(elements, key=elements.__getitem__, default="none")
    if name not in _FORMAT_OF:
        message = f"the model's parameters are {name}; they must be one of {', '.join(_FORMAT_OF)}"
        raise InputError(message)
    return _FORMAT_OF[name]


def _identity(loss_fn: LossFunction | None) -> str:
    """Tell loss functions apart; where the code does not show the behaviour, only one object is itself."""
    if loss_fn is None:
        return "language model"
    code = getattr(loss_fn, "__code__", None)
    if isinstance(loss_fn, FunctionType) and loss_fn.__code__.co_freevars:
        return _CLOSURES.setdefault(loss_fn, uuid.uuid4().hex)
    if code is None or code.co_freevars:
        return uuid.uuid4().hex
    defaults = getattr(loss_fn, "__defaults__", None)
    return _hash_text(f"{code.co_code!r} {code.co_consts} {code.co_names} {defaults}")


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _hash(tensors: Iterable[Any]) -> str:
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def data_settings(name: str, section: CalibrationSection | ValidationSection) -> Json:
    """What identifies a section's samples: a hash of the file, and the settings."""
    settings = section.model_dump(mode="json", exclude={"data", "random_plans", "seed"})
    return {
        f"{name}.data": file_fingerprint(section.data),
        **{f"{name}.{key}": value for key, value in settings.items()},
    }


def _model(section: ModelSection) -> nn.Module:
    name, dtype, trusted = section.name_or_path, section.dtype, section.trust_remote_code
    if section.weights == "random":
        return random_model(_config(section), dtype, trust_remote_code=trusted)
    return load_model(name, dtype, trust_remote_code=trusted)


def _config(section: ModelSection) -> Any:
    return load_config(section.name_or_path, section.config, trust_remote_code=section.trust_remote_code)


def load_samples(
    model: ModelSection, calibration: CalibrationSection, data: Path, samples: int, skip: int = 0
) -> Sequence[Batch]:
    """Batches of a file's samples, after `skip` others, tokenized and cut as the calibration's are."""
    return load_batches(
        _config(model),
        model.tokenizer or model.name_or_path,
        data,
        samples=samples,
        sequence_length=calibration.sequence_length,
        batch_size=calibration.batch_size,
        trust_remote_code=model.trust_remote_code,
        skip=skip,
    )


def versions() -> dict[str, str]:
    """Versions of what the artefacts depend on; for this package's own see `stage.ARITHMETIC`."""
    # Gaudi software brings INC under the last of these names.
    names = ("torch", "transformers", "neural-compressor", "neural-compressor-pt")
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "none"
    return installed
