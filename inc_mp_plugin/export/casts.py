"""Casts of weights to FP8, slab by slab, as compressed-tensors and INC do them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.scales.nearest import largest_magnitude
from inc_mp_plugin.scales.served import FULL_SCALE, channel_scales

if TYPE_CHECKING:
    from torch import Tensor

    from inc_mp_plugin.scales.methods import Scale

    Slabs = Callable[[], Iterable[Tensor]]


def row_scales(slabs: Iterable[Tensor], op: str) -> Iterator[Tensor]:
    """Compute the scale of each row, slab by slab; see `channel_scales`.

    Args:
        slabs: of the weight, shape (rows, inner).
        op: name of the op, for the error.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight.
    """
    for slab in slabs:
        yield finite(channel_scales(slab), op)


def rows_cast(slabs: Iterable[Tensor], op: str) -> Iterator[Tensor]:
    """Divide each row by its scale in the dtype of the weight, and cast to E4M3.

    Args:
        slabs: of the weight, shape (rows, inner).
        op: name of the op, for the error.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight.
    """
    for slab in slabs:
        (scale,) = row_scales([slab], op)
        yield (slab / scale).clamp_(-FULL_SCALE, FULL_SCALE).to(torch.float8_e4m3fn)


def whole_cast(slabs: Iterable[Tensor], scale: Scale, dtype: torch.dtype) -> Iterator[Tensor]:
    """Divide by a single scale in FP32, and cast to E4M3: as INC does.

    Args:
        slabs: of the weight.
        scale: of the whole weight.
        dtype: in which the model ran when it was measured.
    """
    for slab in slabs:
        codes = (slab.to(dtype).float() / scale.divisor).clamp_(-FULL_SCALE, FULL_SCALE)
        yield codes.to(torch.float8_e4m3fn)


def weight_maxabs(slabs: Iterable[Tensor], dtype: torch.dtype, op: str) -> Tensor:
    """Find the largest magnitude of a weight, in the dtype in which the model ran.

    Args:
        slabs: of the weight.
        dtype: in which the model ran when it was measured.
        op: name of the op, for the error.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight.
    """
    largest = torch.stack([largest_magnitude(slab.to(dtype)) for slab in slabs]).amax()
    return finite(largest, op)


def finite(values: Tensor, op: str) -> Tensor:
    """Return these values.

    Args:
        values: of a weight.
        op: name of the op, for the error.

    Raises:
        NonFiniteError: there is a NaN or an infinity among them.
    """
    if not values.isfinite().all():
        message = f"NaN or infinity in the weight of op {op!r}"
        raise NonFiniteError(message)
    return values
