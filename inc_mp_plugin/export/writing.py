"""safetensors files written tensor by tensor, so that none is in memory whole."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_ALIGNMENT = 8  # of the first tensor in the file


@dataclass(frozen=True, slots=True)
class Coming:
    """A tensor to be written: name, dtype in safetensors' words, shape, and its elements, part by part."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    parts: Callable[[], Iterator[Tensor]]

    @property
    def size(self) -> int:
        """Bytes per element."""
        return _BYTES.get(self.dtype, 1)

    @property
    def bytes(self) -> int:
        """Bytes of all elements."""
        return self.size * math.prod(self.shape)


def write_tensors(path: Path, tensors: Sequence[Coming]) -> str:
    """Write a safetensors file; return the SHA-256 of its content.

    Tensors of wide elements come first, so that each is aligned to its elements.

    Args:
        path: of the file.
        tensors: in any order.
    """
    ordered = sorted(tensors, key=lambda coming: (-coming.size, coming.name))
    places: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for coming in ordered:
        end = offset + coming.bytes
        place = {"dtype": coming.dtype, "shape": list(coming.shape), "data_offsets": [offset, end]}
        places[coming.name], offset = place, end
    text = json.dumps(places, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        parts = (_bytes_of(part) for coming in ordered for part in coming.parts())
        for content in chain((len(text).to_bytes(8, "little"), text), parts):
            digest.update(content)
            file.write(content)
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> Any:
    """Return the bytes of a tensor, in the order of its elements."""
    import torch

    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    return flat.numpy().data
