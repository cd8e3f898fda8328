"""Errors of tracing, in words that name the module and the line of the model's code."""

from __future__ import annotations

import linecache
from pathlib import Path
from traceback import walk_tb

import torch
from torch import nn

_NOT_THE_MODELS = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")  # places of code
_LONGEST = 160  # characters of torch's own words
# What torch says if Python asks for a value, which a trace has not.
_ASKS_FOR_A_VALUE = ("data-dependent", "data pointer", "local_scalar_dense", "meta tensors")


def asks_for_a_value(error: BaseException) -> bool:
    """Tell whether Python asked for a value while a model was traced."""
    return any(sign in str(error) for sign in _ASKS_FOR_A_VALUE)


def trace_fault(error: BaseException, skeleton: nn.Module) -> str:
    """Say where a model could not be traced, why, and what to do, in one line.

    Args:
        error: raised while the model was exported.
        skeleton: the model without weights.
    """
    words = (str(error).strip().splitlines() or [type(error).__name__])[0]
    words = words if len(words) <= _LONGEST else words[:_LONGEST].rstrip() + "…"
    advice = "give inputs that the model takes, or see the error's cause"
    if asks_for_a_value(error):
        advice = (
            "if the forward pass branches on values that follow from weights, replace that by tensor "
            "operations; a Python loop over experts can be traced only beside a linear router with a `top_k`"
        )
    return f"torch.export cannot trace {type(skeleton).__name__}{_place(error, skeleton)}: {words}; {advice}"


def _place(error: BaseException, skeleton: nn.Module) -> str:
    """Name the innermost module whose forward pass was running, and the last line outside of torch."""
    names = {id(module): name for name, module in skeleton.named_modules()}
    name = line = ""
    for frame, number in walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        owner = frame.f_locals.get(frame.f_code.co_varnames[0]) if frame.f_code.co_argcount else None
        if path.startswith(_NOT_THE_MODELS) or (not name and id(owner) not in names):
            continue
        if id(owner) in names:
            name = names[id(owner)] or type(skeleton).__name__
        line = f"{Path(path).name}, line {number}: `{linecache.getline(path, number).strip()}`"
    return f" at module {name!r} ({line})" if name else ""
