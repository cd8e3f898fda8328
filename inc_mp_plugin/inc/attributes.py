"""Attributes that INC adds to the modules of a model, and their removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

Attributes = Mapping[str, frozenset[str]]


def attributes_of(model: nn.Module) -> Attributes:
    """List the names of the attributes that every module of a model has now."""
    return {name: frozenset(vars(module)) for name, module in model.named_modules()}


def take_attributes_back(model: nn.Module, before: Attributes) -> dict[nn.Module, dict[str, Any]]:
    """Remove the attributes that INC added to a model's modules.

    Returns:
        The removed attributes with their values, by module.
    """
    removed = {}
    for name, module in model.named_modules():
        added = vars(module).keys() - before.get(name, vars(module).keys())
        removed[module] = {attribute: vars(module).pop(attribute) for attribute in added}
    return removed


@contextmanager
def set_aside(model: nn.Module, before: Attributes) -> Iterator[None]:
    """Hold back the attributes that INC added to a model's modules, and put them back at the end.

    Within the context the modules have the attributes they had before INC. Some of INC's cannot be copied.
    """
    removed = take_attributes_back(model, before)
    try:
        yield
    finally:
        for module, attributes in removed.items():
            vars(module).update(attributes)
