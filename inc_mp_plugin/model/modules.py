"""The modules of a model by their names."""

from __future__ import annotations

import copy

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
