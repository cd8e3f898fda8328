"""Subject of a plan: a model and its calibration data, and what identifies them."""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import metadata
from types import FunctionType
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import BASES, FORMATS
from inc_mp_plugin.runtime import ranks

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction

Json = dict[str, Any]

_CLOSURES = WeakKeyDictionary[FunctionType, str]()
_FORMAT_OF = {FORMATS[name].torch_name: name for name in BASES}


@dataclass(frozen=True)
class Subject:
    """Subject of a plan: a model and its calibration batches, loaded when first needed.

    `depends_on` identifies them (hashes and settings); `base` is the format the model runs in.
    `own_share` says that of several processes each has batches of its own, not all the same ones;
    `has_weights` that there is a loss to measure, and `borrowed` that the model is the user's, and must leave
    as it came.
    """

    depends_on: Json
    base: str
    load_model: Callable[[], nn.Module]
    load_batches: Callable[[], Sequence[Batch]]
    loss_fn: LossFunction | None = None
    own_share: bool = False
    has_weights: bool = True
    borrowed: bool = False

    @cached_property
    def model(self) -> nn.Module:
        """The model."""
        return self.load_model()

    @cached_property
    def batches(self) -> Sequence[Batch]:
        """The calibration batches."""
        return self.load_batches()

    def lent(self) -> Subject:
        """Return the same subject, whose model stays as it is when it is to be converted."""
        return replace(self, load_model=lambda: self.model, load_batches=lambda: self.batches, borrowed=True)

    def model_to_convert(self) -> nn.Module:
        """Return the model for INC to convert for good: a copy with the same weights if it is the user's.

        Raises:
            InputError: it cannot be copied, or is not all in one place.
        """
        from inc_mp_plugin.model.modules import copy_model
        from inc_mp_plugin.model.wrappers import unwrapped

        model = unwrapped(self.model)
        return copy_model(model) if self.borrowed else model


def subject_in_memory(model: nn.Module, batches: Sequence[Batch], loss_fn: LossFunction | None) -> Subject:
    """Make a subject of a model and batches that are there already, identified by their content.

    Args:
        model: with its weights.
        batches: of calibration.
        loss_fn: from the model and a batch to losses, shape (samples,); `default_loss` if None.
    """
    from inc_mp_plugin.libraries.torch import leaves
    from inc_mp_plugin.model.weights import stored_tensors

    return Subject(
        depends_on={
            "model": hash_tensors(stored_tensors(model)),
            "architecture": _hash_text(f"{model} {getattr(model, 'config', '')}"),
            "data": hash_tensors(leaf for batch in batches for leaf in leaves(batch)),
            "loss_fn": _identity(loss_fn),
            "versions": versions(),
        },
        base=base_format(model),
        load_model=lambda: model,
        load_batches=lambda: batches,
        loss_fn=loss_fn,
        own_share=True,
        borrowed=True,
    )


def with_data_of_all_ranks(subject: Subject) -> Subject:
    """Identify a subject by the batches of every process."""
    if ranks.size() == 1:
        return subject
    everywhere = ranks.exchange(subject.depends_on["data"].encode())
    return replace(subject, depends_on={**subject.depends_on, "data": _hash_text(f"{everywhere}")})


def subject_measured_before(model: nn.Module, depends_on: Json) -> Subject:
    """Make a subject of a model that another process measured, from batches that are gone.

    Args:
        model: as its sensitivities were measured.
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
    """Find the format that a model runs in: that of most of its floating-point parameters.

    Raises:
        InputError: it has none, or they are of a format that cannot be a base.
    """
    elements = Counter[str]()
    for parameter in model.parameters():
        if parameter.is_floating_point():
            elements[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
    name = max(elements, key=elements.__getitem__, default="none")
    if name not in _FORMAT_OF:
        given = f"the model's parameters are {name}" if elements else "the model has no such parameters"
        message = f"{given}; the base format is one of {', '.join(_FORMAT_OF)}"
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


def hash_tensors(tensors: Iterable[Any]) -> str:
    """Hash types, shapes and values of those of some things that are tensors."""
    import torch

    digest = hashlib.sha256()
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            content = tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(content.numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """List the versions of what the artefacts depend on; for this package's own see `reuse.ARITHMETIC`."""
    # Gaudi software brings INC under the last of these names.
    names = ("torch", "transformers", "neural-compressor", "neural-compressor-pt")
    installed = {}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "none"
    return installed
