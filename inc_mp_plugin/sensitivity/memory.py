"""Memory of a sensitivity pass: that of the activations of all blocks, or of one."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from inc_mp_plugin.core.errors import InputError, unknown
from inc_mp_plugin.core.footprint import Footprint, footprint
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import Memory
from inc_mp_plugin.libraries.accelerate import is_dispatched
from inc_mp_plugin.runtime.free_memory import free_memory
from inc_mp_plugin.runtime.progress import say

_MOST = 0.5  # of the memory that is free: the estimate is no more than one


def decided(memory: Memory, model: nn.Module, graph: Graph, *, rounded: bool) -> Literal["low", "high"]:
    """Decide how much memory a sensitivity pass takes.

    Args:
        memory: as asked for; "auto" is "high" if that takes no more than half of what is free, else "low".
        model: to be measured.
        graph: its ops.
        rounded: see `footprint`.

    Raises:
        InputError: another word.
    """
    if memory not in get_args(Memory):
        raise InputError(unknown("memory", memory, get_args(Memory)))
    if memory == "auto":
        return _automatic(model, graph, rounded=rounded)
    return memory


def _automatic(model: nn.Module, graph: Graph, *, rounded: bool) -> Literal["low", "high"]:
    if is_dispatched(model):  # kept activations would keep the weights that made them, too
        say("memory: low, because not all weights are on the device that runs the model")
        return "low"
    parameter = next(model.parameters(), None)
    if parameter is None:
        return "high"
    device, size = parameter.device, parameter.element_size()
    needed = footprint(graph, size, rounded=rounded, in_files=device.type == "cpu")
    free = free_bytes(device)
    if free is None or not takes_low("auto", needed, device):
        return "high"
    say(
        f"memory: low, which takes about {needed.low / 1e9:.1f} GB beside the weights and one more forward "
        f"pass; high takes {needed.high / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free"
    )
    return "low"


def takes_low(memory: Memory, needed: Footprint, device: torch.device) -> bool:
    """Tell if a pass takes low memory: if asked for, or by itself where high is too much and low is less.

    Args:
        memory: as asked for.
        needed: for either.
        device: of the pass.
    """
    if memory != "auto":
        return memory == "low"
    free = free_bytes(device)
    return free is not None and needed.high > _MOST * free and needed.low < needed.high


def free_bytes(device: torch.device) -> int | None:
    """Return the memory that is free on a device; None if it cannot be told."""
    if device.type == "cpu":
        return free_memory()
    module = getattr(torch, device.type, None)
    ask = getattr(module, "mem_get_info", None)
    return None if ask is None else int(ask(device)[0])
