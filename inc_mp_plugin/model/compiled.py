"""Functions of elements as one kernel of a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def fused(function: Callable[..., Any], *example: Any) -> tuple[Callable[..., Any], str]:
    """Make one kernel of a function of elements; where nothing compiles, return it as it is, and why.

    On a CPU it is traced alone: as kernels it would take a compiler of C++.

    Args:
        function: of tensors, without control flow.
        example: its arguments.
    """
    on_cpu = all(value.device.type == "cpu" for value in example if isinstance(value, Tensor))
    compiled = torch.compile(function, dynamic=True, backend="eager" if on_cpu else "inductor")
    try:
        compiled(*example)
    except (RuntimeError, ImportError, OSError) as error:  # torch's own errors of compiling are RuntimeErrors
        return function, f"not fused: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    return compiled, "traced" if on_cpu else "fused"
