"""Batches: a batch is a tensor, a tuple of positional inputs, or a dict of keyword inputs.

The first axis of every tensor counts samples; anything else is passed along as it is. Packed images, which
only the model's code can tell apart, are the exception (`is_packed`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    Batch = Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]


_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ANSWERS = ("labels", "start_positions", "end_positions", "return_loss")
_SIZES_OF_IMAGES = {"image_grid_thw", "video_grid_thw"}


def call(model: nn.Module, batch: Batch) -> Any:
    """Run the model on a batch, wherever the batch is."""
    args, kwargs = arguments(model, placed(model, batch))
    return model(*args, **kwargs)


def arguments(model: nn.Module, batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the positional and keyword arguments of a forward pass, without key-value cache and answers.

    A cache is of no use where every sample is run once, and would keep all keys in memory. Answers would make
    a model of transformers compute its mean loss; only a decoder behind an encoder makes its inputs of them.
    What else a dict or a tuple holds, such as a target, is there for `loss_fn`, and the forward is spared it.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(batch, dict):
        decoder_only = getattr(getattr(model, "config", None), "is_encoder_decoder", None) is False
        kwargs = {key: value for key, value in batch.items() if not (decoder_only and key in _ANSWERS)}
    elif isinstance(batch, (tuple, list)):
        args = tuple(batch)
    else:
        args = (batch,)
    parameters = inspect.signature(model.forward).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not open_ended:
        kwargs = {key: value for key, value in kwargs.items() if key in parameters}
    if not any(p.kind is p.VAR_POSITIONAL for p in parameters.values()):
        args = args[: sum(p.kind in _POSITIONAL for p in parameters.values())]
    # A language model behind an image's encoder takes the word on with other keywords.
    if "use_cache" in parameters or (open_ended and can_generate(model)):
        kwargs.setdefault("use_cache", False)
    return args, kwargs


def can_generate(model: nn.Module) -> bool:
    """Tell if a model of transformers writes texts."""
    ask = getattr(model, "can_generate", None)
    return bool(ask()) if callable(ask) else False


def map_tensors(batch: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to every tensor of a batch, keeping its structure."""
    from inc_mp_plugin.libraries import torch as of_torch

    return of_torch.map_tensors(function, batch)


def placed(model: nn.Module, batch: Batch) -> Batch:
    """Move a batch to the device that a model runs on; a model without weights takes it as it is."""
    from inc_mp_plugin.model.weights import device_of

    device = device_of(model)
    if device is None or device.type == "meta":
        return batch
    moved: Batch = map_tensors(batch, lambda tensor: tensor.to(device))
    return moved


@dataclass(frozen=True)
class OnDevice(Sequence["Batch"]):
    """Batches that are kept elsewhere, each moved to a device when it is asked for."""

    batches: Sequence[Batch]
    device: Any

    def __len__(self) -> int:
        """Count the batches."""
        return len(self.batches)

    def __getitem__(self, index: Any) -> Any:
        """Move one batch, or a part of them."""
        return map_tensors(self.batches[index], lambda tensor: tensor.to(self.device))


def batch_size(batch: Batch) -> int:
    """Count the samples in a batch: its rows of `input_ids`, or else of its first tensor.

    Raises:
        InputError: it holds no tensor with a first axis, or an empty one.
    """
    sizes: list[int] = []
    counted = batch.get("input_ids", batch) if isinstance(batch, dict) else batch
    map_tensors(counted, lambda t: sizes.append(t.shape[0]) if t.dim() else None)
    if not sizes or sizes[0] == 0:
        message = (
            f"a batch of type {type(batch).__name__} holds no samples; "
            "give tensors whose first axis counts them"
        )
        raise InputError(message)
    return sizes[0]


def is_packed(batch: Batch) -> bool:
    """Tell whether a batch holds patches of all its images in one row, as Qwen's models take them.

    Their sizes stand in `image_grid_thw`. Such a batch cannot be cut into samples.
    """
    return isinstance(batch, dict) and not _SIZES_OF_IMAGES.isdisjoint(batch)


def sample_lengths(batch: Batch) -> set[int]:
    """Collect the sizes of the second axis of a batch's tensors, such as the number of tokens of a sample."""
    size, lengths = batch_size(batch), set[int]()
    map_tensors(batch, lambda t: lengths.add(t.shape[1]) if t.dim() > 1 and t.shape[0] == size else None)
    return lengths


def told_nan(batch: Batch, first: int = 1) -> str:
    """Name the first sample of a batch that holds NaN, to end an error's text; nothing if none does.

    Args:
        batch: of samples.
        first: number of the first of them.
    """
    size, broken = batch_size(batch), set[int]()

    def look(tensor: Tensor) -> None:
        if tensor.dim() and tensor.shape[0] == size:
            broken.update(tensor.reshape(size, -1).isnan().any(dim=1).nonzero().flatten().tolist())

    map_tensors(batch, look)
    return f"; sample {first + min(broken)} of the data holds NaN" if broken else ""


def samples(batch: Batch, start: int, stop: int) -> Batch:
    """Cut a part of the samples out of a batch, as a batch.

    Tensors whose first axis is not the batch's (position ids shared by all samples) stay whole.

    Args:
        batch: of samples.
        start: index of the first sample of the part, from 0.
        stop: index after its last sample.
    """
    size = batch_size(batch)
    part: Batch = map_tensors(batch, lambda t: t[start:stop] if t.dim() and t.shape[0] == size else t)
    return part
