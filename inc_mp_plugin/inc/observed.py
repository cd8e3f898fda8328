"""Calibration batches kept while INC calibrates, to be replayed for the gradients."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.batches import batch_size, map_tensors
from inc_mp_plugin.errors import InputError


class Observed:
    """The first samples that pass through a model, as dicts by the forward's argument names.

    A hook on the model copies them; the copies are ordinary tensors, whatever mode calibration runs
    in. Steps that go on from a key-value cache (all but the first of a generation) are left out.
    """

    def __init__(self, samples: int) -> None:
        """Keep up to this many samples."""
        self.batches: list[dict[str, Any]] = []
        self._missing = samples
        self._hook_id = -1

    def watch(self, model: nn.Module) -> None:
        """Start keeping what the model is called with."""
        handle = model.register_forward_pre_hook(self, with_kwargs=True)
        self._hook_id = handle.id

    def stop(self, model: nn.Module) -> None:
        """Stop, and take the hook off the model.

        By its id, for a deep copy of a model has copies of its hooks.

        Raises:
            InputError: no batch was seen.
        """
        model._forward_pre_hooks.pop(self._hook_id, None)
        model._forward_pre_hooks_with_kwargs.pop(self._hook_id, None)
        if not self.batches:
            message = "calibration did not call the model; run at least one batch through it"
            raise InputError(message)

    def __call__(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep one call; called by torch before the model's forward."""
        if self._missing <= 0 or _goes_on_from_cache(kwargs):
            return
        named = inspect.signature(model.forward).bind_partial(*args, **kwargs).arguments
        named.update(named.pop("kwargs", {}))
        tensors = {key: value for key, value in named.items() if isinstance(value, Tensor)}
        if not tensors:
            return
        with torch.inference_mode(False):
            batch = map_tensors(tensors, lambda t: t.detach().clone())
        self.batches.append(batch)
        self._missing -= batch_size(batch)


def _goes_on_from_cache(kwargs: dict[str, Any]) -> bool:
    cache = kwargs.get("past_key_values")
    if cache is None:
        return False
    length = cache.get_seq_length() if hasattr(cache, "get_seq_length") else len(cache)
    return int(length) > 0
