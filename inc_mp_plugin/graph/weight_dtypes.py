"""Modules whose weight's dtype the model's own code reads, to cast what it gives them."""

from __future__ import annotations

import inspect
import re

from torch import nn

from inc_mp_plugin.libraries.peft import CAST

_DTYPE = r"self((?:\.\w+)+)\.weight\.dtype\b"
_CAST = re.compile(rf"\.to\((?:dtype=)?{_DTYPE}")
_NAMED = re.compile(rf"(\w+) = {_DTYPE}")  # to be cast to afterwards
_PART = re.compile(r"(\w+) = self((?:\.\w+)+)\[\w+\]\n")  # a child in a list or a dict, such as an adapter
_ANY = ".*"


def modules_cast_to(model: nn.Module) -> frozenset[str]:
    """Name the modules that the model's code gives inputs in the dtype of their weight.

    Such are the last layer of T5's blocks, the patches of most vision towers and the first half of a LoRA.
    INC stores the weight in FP8, so the code would cast the input to FP8 without a scale.

    Args:
        model: whose classes have source code; classes that have none, and torch's own, are passed over.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    paths = {kind: _paths(kind) for kind in {type(module) for module in modules.values()}}
    named = {f"{name}{path}".removeprefix(".") for name, m in modules.items() for path in paths[type(m)]}
    parts = {name for name in modules if f"{name.rpartition('.')[0]}{_ANY}" in named}
    return frozenset(named & modules.keys() | parts)


def _paths(kind: type[nn.Module]) -> tuple[str, ...]:
    """List the children, from a dot on, to whose weight's dtype the forward pass of a class casts.

    `.*` at the end stands for all children of a child.
    """
    if kind.__module__.partition(".")[0] == "torch":
        return ()
    try:
        source = inspect.getsource(kind.forward)
    except (OSError, TypeError):  # typed at a prompt, or written in C
        return ()
    named = [
        path for name, path in _NAMED.findall(source) if re.search(rf"\.to\((?:dtype=)?{name}\b", source)
    ]
    parts = [
        path + _ANY
        for name, path in _PART.findall(source)
        if re.search(rf"(?:\.to\((?:dtype=)?|{CAST}){name}\.weight\.dtype\b", source)
    ]
    return tuple(dict.fromkeys([*_CAST.findall(source), *named, *parts]))
