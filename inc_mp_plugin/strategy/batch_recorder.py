"""Calibration batches, recorded while INC calibrates and replayed for the gradients."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import leaves, remove_pre_hook
from inc_mp_plugin.model.batches import batch_size, map_tensors
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.strategy.cache_arguments import goes_on, without_cache

if TYPE_CHECKING:
    from inc_mp_plugin.model.losses import LossFunction

ROOM = 2**31  # bytes


class BatchRecorder:
    """Recorder of the first samples that pass through a model, mostly as dicts by the forward's arguments.

    A hook on the model copies them off its device; the copies are ordinary tensors, whatever mode
    calibration runs in. Steps that go on from a key-value cache (all but the first of a generation) are
    left out, and the first is kept without its empty cache.
    """

    def __init__(self, samples: int, room: int = ROOM) -> None:
        """Keep up to this many samples, and no more once they fill `room` bytes."""
        self.batches: list[Any] = []
        self._missing = samples
        self._room = room
        self._hook_id = -1
        self._was_called = self._went_on = False

    def watch(self, model: nn.Module) -> None:
        """Start keeping what the model is called with."""
        handle = model.register_forward_pre_hook(self, with_kwargs=True)
        self._hook_id = handle.id

    def stop(self, model: nn.Module) -> None:
        """Stop, and take the hook off the model.

        Raises:
            InputError: no batch was seen.
        """
        self.forget(model)
        if not self.batches:
            message = "calibration did not call the model; run at least one batch through it"
            if self._was_called:
                message = (
                    "calibration called the model without tensors to be kept for the gradients; they may be "
                    "arguments of its forward, or in lists and dicts that are"
                )
            if self._went_on:
                message = (
                    "every call of calibration went on from a key-value cache, which cannot be replayed; let "
                    "calibration begin with an empty cache"
                )
            raise InputError(message)

    def forget(self, model: nn.Module) -> None:
        """Take the hook off the model, by its id: a deep copy of a model has copies of its hooks."""
        remove_pre_hook(model, self._hook_id)

    def replay(self, model: nn.Module, loss_fn: LossFunction | None) -> Tensor:
        """Run a model on the first batch that was kept; return the losses of its samples."""
        return sample_losses(model, self.batches[0], loss_fn)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep one call; called by torch before the model's forward."""
        self._was_called = True
        if self._missing <= 0:
            return
        named = _named(model, args, kwargs)
        if goes_on(named):
            self._went_on = True
            return
        tensors = _tensors_of(model, args, named)
        if not tensors:
            return
        sizes: list[int] = []
        map_tensors(tensors, lambda tensor: sizes.append(tensor.nbytes))
        self._room -= sum(sizes)
        if self._room < 0 and self.batches:
            say(f"Gradients are of the first {len(self.batches)} batches, which fill the room for them.")
            self._missing = 0
            return
        with torch.inference_mode(False):
            batch = map_tensors(tensors, lambda t: t.detach().to("cpu", copy=True))
        self.batches.append(batch)
        self._missing -= batch_size(batch)


def _named(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return all that a call is given, by the names of the forward's parameters and of its other keywords."""
    signature = inspect.signature(model.forward)
    named: dict[str, Any] = {}
    for key, value in signature.bind_partial(*args, **kwargs).arguments.items():
        kind = signature.parameters[key].kind
        named |= value if kind is inspect.Parameter.VAR_KEYWORD else {key: value}
    return named


def _tensors_of(model: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return the arguments of a call that hold tensors alone: as tensors, or in lists and dicts.

    They come by the names of the forward's arguments; as a tuple where a `*args` of the forward takes them.
    """
    for key, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL and named.get(key):
            return tuple(value for value in args if _holds_tensors(value))
    return {key: value for key, value in without_cache(named).items() if _holds_tensors(value)}


def _holds_tensors(value: Any) -> bool:
    parts = leaves(value)
    return bool(parts) and all(isinstance(part, Tensor) for part in parts)
