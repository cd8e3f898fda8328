"""Formats as torch stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.formats import get_format

if TYPE_CHECKING:
    import torch


def dtype_of(format_name: str) -> torch.dtype:
    """Return torch's dtype of a floating-point format.

    Raises:
        InputError: there is no format of that name, or it is an integer.

    Example:
        >>> dtype_of("fp8_e4m3")
        torch.float8_e4m3fn
    """
    import torch

    name = get_format(format_name).torch_name
    if not name:
        message = f"{format_name} is an integer, which torch has no dtype for; give a floating-point format"
        raise InputError(message)
    dtype: torch.dtype = getattr(torch, name)
    return dtype
