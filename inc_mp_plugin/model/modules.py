"""The modules of a model by their names."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import give_parameters, parameters_of


def class_names(model: nn.Module) -> dict[str, str]:
    """Name the class of every module of a model, itself aside."""
    return {name: type(module).__name__ for name, module in model.named_modules() if name}


def module_of(model: nn.Module, name: str) -> nn.Module:
    """Return the module of an op.

    Raises:
        InputError: the model has none of that name.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        message = f"{name!r} is not a module of this model; a graph has to be captured from the same model"
        raise InputError(message) from error


def put_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module in the place of the one of that name.

    Args:
        model: that holds the module of that name.
        name: of the module to be replaced, with dots.
        module: the new one.
    """
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def twin(module: nn.Module) -> nn.Module:
    """Copy a module, sharing its tensors but not the dict of them: either may be given others."""
    other = copy.copy(module)
    give_parameters(other, dict(parameters_of(module)))
    return other


def copy_model(model: nn.Module) -> nn.Module:
    """Copy a model: modules, buffers and parameters of its own, whose values lie in the same memory.

    So the copy takes hardly more memory, and may be converted: what puts other values into a parameter gives
    them memory of their own.

    Raises:
        InputError: a part of the model cannot be copied.
    """
    same: dict[int, Any] = {
        id(parameter): nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
        for parameter in model.parameters()
    }
    try:
        return copy.deepcopy(model, same)
    except (RuntimeError, TypeError) as error:  # of tensors with a graph; of what cannot be pickled
        text = " ".join(str(error).split())
        message = f"plans are measured in a copy of the model, which cannot be copied: {text}"
        raise InputError(message) from error
