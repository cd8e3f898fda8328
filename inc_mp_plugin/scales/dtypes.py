"""Formats as torch stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inc_mp_plugin.core.formats import get_format

if TYPE_CHECKING:
    import torch


def dtype_of(format_name: str) -> torch.dtype:
    """Return torch's dtype of a floating-point format.

    Raises:
        InputError: there is no format of that name.

    Example:
        >>> dtype_of("fp8_e4m3")
        torch.float8_e4m3fn
    """
    import torch

    dtype: torch.dtype = getattr(torch, get_format(format_name).torch_name)
    return dtype
