"""Tensors of a pass in temporary files: the kernel may take the memory of a file for other work."""

from __future__ import annotations

import tempfile
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inc_mp_plugin.runtime.disk import free_on_disk

if TYPE_CHECKING:
    from collections.abc import Iterable

LARGE = 2**20  # bytes


def empty_in_a_file(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Make a tensor, on a CPU in a file that ends with it, if the disk has room for that.

    Args:
        shape: of the tensor.
        like: has its dtype and device.
    """
    size = torch.Size(shape).numel()
    if like.device.type != "cpu" or size * like.element_size() > free_on_disk(Path(tempfile.gettempdir())):
        return like.new_empty(shape)
    with tempfile.NamedTemporaryFile(prefix="inc_mp_plugin-") as file:
        return torch.from_file(file.name, shared=True, size=size, dtype=like.dtype).view(shape)


def kept_in_files(tensors: Iterable[Tensor]) -> AbstractContextManager[Any]:
    """Keep large tensors that have a gradient in files, where what runs inside a `with` saves them for it.

    Args:
        tensors: that it reads; without a large one among them, nothing changes.
    """
    if not any(map(_is_large, tensors)):
        return nullcontext()
    return torch.autograd.graph.saved_tensors_hooks(_packed, lambda tensor: tensor)


def _packed(tensor: Tensor) -> Tensor:
    return (
        empty_in_a_file(tuple(tensor.shape), tensor).copy_(tensor.detach()) if _is_large(tensor) else tensor
    )


def _is_large(tensor: Tensor) -> bool:
    """Tell if a tensor is of a block alone, unlike a mask that all blocks read, and large, and on a CPU."""
    return tensor.requires_grad and tensor.nbytes >= LARGE and tensor.device.type == "cpu"
