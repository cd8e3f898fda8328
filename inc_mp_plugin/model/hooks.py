"""Hooks on the modules of a model, for as long as a `with` lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from inc_mp_plugin.libraries.accelerate import is_hooked, within

if TYPE_CHECKING:
    Before = Callable[[str, Any, Any], Any]
    After = Callable[[str, Any, Any, Any], Any]


@contextmanager
def watching(
    modules: Mapping[str, nn.Module], before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Call functions before and after every forward pass of these modules; then take the hooks off again.

    Where accelerate brings weights for a pass alone, the functions are called while they are there.

    Args:
        modules: by name.
        before: takes a name, the call's arguments and keywords; returns None, or new (arguments, keywords).
        after: takes a name, the call's arguments, its keywords and its output; returns None, or a new output.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            if is_hooked(module):  # torch's hooks run when its weights are not there yet, and gone again
                stack.enter_context(within(module, partial(_around, name, before, after)))
                continue
            if before is not None:
                hook = partial(_call, before, name)
                stack.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)
            if after is not None:
                hook = partial(_call, after, name)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


@contextmanager
def with_forward(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run another function inside a `with`.

    Afterwards it runs its class's own again, or the one that lay on the module: accelerate puts one there.
    """
    attributes = vars(module)
    before = {"forward": attributes["forward"]} if "forward" in attributes else {}
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        attributes |= before


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Any]]:
    """Record the outputs of a model inside a `with`.

    Yields:
        The output of each forward pass of the whole model, in order; it grows as the model is run.
    """
    outputs: list[Any] = []

    def keep(name: str, args: Any, kwargs: Any, output: Any) -> None:
        del name, args, kwargs
        outputs.append(output)

    with watching({"": model}, after=keep):
        yield outputs


def _around(
    name: str,
    before: Before | None,
    after: After | None,
    forward: Callable[..., Any],
    *args: Any,
    **kwargs: Any,
) -> Any:
    if before is not None:
        args, kwargs = before(name, args, kwargs) or (args, kwargs)
    output = forward(*args, **kwargs)
    changed = None if after is None else after(name, args, kwargs, output)
    return output if changed is None else changed


def _call(function: Callable[..., Any], name: str, module: nn.Module, *values: Any) -> Any:
    del module
    return function(name, *values)
