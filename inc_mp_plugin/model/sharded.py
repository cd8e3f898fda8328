"""A model whose weights are spread over several processes, by torch's FSDP2."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from inc_mp_plugin.core.errors import InputError, few
from inc_mp_plugin.libraries.torch import local_part
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.runtime.lockstep import Lockstep, Turn, in_lockstep
from inc_mp_plugin.runtime.progress import say

_FSDP = "run: {parallel: fsdp}"
_OTHERWISE = "give run: {parallel: samples}"


@contextmanager
def sharded(model: nn.Module, blocks: Sequence[str]) -> Iterator[nn.Module]:
    """Split a model among all processes, each of which may then run it on samples of its own.

    Every process holds a share of each weight; those of a block are gathered while it runs, forward or
    backward, and those outside of blocks while anything runs.

    Args:
        model: the same in every process; it stays spread.
        blocks: names of its repeated blocks, in execution order; none to gather all weights at once.

    Yields:
        The model.

    Raises:
        InputError: torch is too old, a host has more processes than cards, a weight is in a block and outside
            of it, or, when it runs, a block does not run once, in this order.
    """
    whole = sum(parameter.nbytes for parameter in model.parameters())
    parts = _shard(model, blocks)
    own = sum(local_part(parameter).nbytes for parameter in model.parameters())
    say(
        f"parallel: fsdp over {ranks.size()} processes; this one holds {own / 1e9:.3g} of "
        f"{whole / 1e9:.3g} GB of weights"
    )

    def take_part(turn: Turn) -> None:
        root, *others = parts
        for part in [root, *(reversed(others) if turn == "backward" else others)]:
            part.unshard()
            part.reshard()

    # An op's gradient may come before FSDP2 gathers the head for it: the first hook on a tensor is the op's.
    with in_lockstep(take_part, parts[0].unshard) as lockstep, _watched(model, blocks, lockstep):
        yield model


def _shard(model: nn.Module, blocks: Sequence[str]) -> list[Any]:
    """Split up each block, and the rest as one; the rest comes first in the result."""
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        message = f"{_FSDP} needs torch 2.6 or newer; {_OTHERWISE}"
        raise InputError(message) from error
    _refuse_shared(model, blocks)
    modules = [module_of(model, name) for name in blocks]
    model.requires_grad_(False)
    mesh = _mesh()
    for module in [*modules, model]:
        # Also what is outside of blocks, an embedding and a head, is given back between two passes.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
    return [model, *modules]


def _refuse_shared(model: nn.Module, blocks: Sequence[str]) -> None:
    """Refuse a weight of two parts of the model, each of which would spread it.

    Raises:
        InputError: there is one.
    """
    parts: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        part = next((block for block in blocks if name.startswith(f"{block}.")), "")
        if parts.setdefault(id(parameter), part) != part:
            message = f"{name} is the weight of another block, too, which {_FSDP} cannot spread; {_OTHERWISE}"
            raise InputError(message)


@contextmanager
def _watched(model: nn.Module, blocks: Sequence[str], lockstep: Lockstep) -> Iterator[None]:
    """Let passes wait for their turn, and check that all gather the same weights in the same order."""
    ran: list[str] = []

    def start(*_: Any) -> None:
        lockstep.start("forward")
        ran.clear()

    def end(*_: Any) -> None:
        if ran != list(blocks):
            message = (
                f"a pass ran {len(ran)} blocks ({few(ran)}) where the captured graph has {len(blocks)} "
                f"({few(blocks)}), and with {_FSDP} every batch must run the same; {_OTHERWISE}"
            )
            raise InputError(message)
        lockstep.end()

    with ExitStack() as stack:
        handles = [
            model.register_forward_pre_hook(start, prepend=True),  # before FSDP2 gathers
            model.register_forward_hook(end),
        ]
        for name in blocks:
            module = module_of(model, name)
            handles.append(module.register_forward_pre_hook(partial(_note, ran, name), prepend=True))
        for handle in handles:
            stack.callback(handle.remove)
        yield


def _note(ran: list[str], name: str, *_: Any) -> None:
    ran.append(name)


def _mesh() -> DeviceMesh:
    """Put all processes in a row, each on a card of its own where hosts have cards.

    Raises:
        InputError: the host has fewer cards than processes.
    """
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return init_device_mesh("cpu", (ranks.size(),))
    cards, number = torch.accelerator.device_count(), int(os.environ.get("LOCAL_RANK", ranks.rank()))
    if number >= cards:
        message = (
            f"this host has {cards} cards, and process {number} (from 0) would need one more; start "
            f"torchrun with --nproc-per-node={cards}"
        )
        raise InputError(message)
    torch.accelerator.set_device_index(number)
    # Messages stay with gloo, on the CPU; weights go the accelerator's own way.
    group = distributed.new_group(backend=distributed.get_default_backend_for_device(accelerator.type))
    return DeviceMesh.from_group(group, accelerator.type)
