"""Places of the weights of ops in a checkpoint: a tensor, or a matrix out of a stack of experts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from inc_mp_plugin.export.checkpoint import Checkpoint
from inc_mp_plugin.targets.layout import expert_role, split

if TYPE_CHECKING:
    from torch import Tensor

    from inc_mp_plugin.model.expert_stacks import Order

WEIGHT = ".weight"
# Stacks of experts, by their names, and the names of an expert's linear layers in each.
STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}


class Place(NamedTuple):
    """The weight of an op: the checkpoint's name of its module, and the tensor that holds it.

    `number` counts the matrices of a stack; `rows` are the weight's own rows in such a matrix, which may be
    `transposed`.
    """

    module: str
    tensor: str
    number: int | None = None
    rows: slice = slice(None)
    transposed: bool = False

    def slabs(self, checkpoint: Checkpoint) -> Iterator[Tensor]:
        """Yield the weight in slabs of rows, shape (rows, inner).

        Args:
            checkpoint: that holds it.
        """
        if self.number is None:
            yield from checkpoint.slabs(self.tensor)
            return
        matrix = checkpoint.matrix(self.tensor, self.number)
        yield (matrix.T if self.transposed else matrix)[self.rows].contiguous()

    def shape(self, checkpoint: Checkpoint) -> tuple[int, int]:
        """Return the numbers of rows and columns.

        Args:
            checkpoint: that holds it.
        """
        rows, columns = checkpoint.tensors[self.tensor].shape[-2:]
        if self.transposed:
            rows, columns = columns, rows
        return len(range(rows)[self.rows]), columns


def places_of(
    ops: Collection[str], checkpoint: Checkpoint, order_of: Callable[[str], Order | str]
) -> tuple[dict[str, Place], dict[str, str]]:
    """Look up where a checkpoint holds the weights of linear ops.

    Checkpoints name experts in their own ways: by layer, number and role they are the same.

    Args:
        ops: names of linear ops, as transformers names modules.
        checkpoint: that the model was loaded from.
        order_of: gives the order of a stack of experts, by the name of their module, or why it is not known.

    Returns:
        The places by op, and the reasons of the ops without one.
    """
    experts = _experts(checkpoint.tensors)
    places, reasons = dict[str, Place](), dict[str, str]()
    for op in ops:
        role = expert_role(op)
        if f"{op}{WEIGHT}" in checkpoint.tensors:
            places[op] = Place(op, f"{op}{WEIGHT}")
        elif role is None:
            reasons[op] = f"the checkpoint holds no tensor {op}{WEIGHT}"
        elif (key := _key(role)) in experts:
            module = experts[key]
            places[op] = Place(module, f"{module}{WEIGHT}")
        else:
            place = _in_stack(op, role, checkpoint, order_of)
            if isinstance(place, str):
                reasons[op] = place
            else:
                places[op] = place
    return places, reasons


def _experts(tensors: Collection[str]) -> dict[tuple[str, int, str], str]:
    """Name the linear layers of experts in a checkpoint by layer, number and role."""
    experts = {}
    for name in tensors:
        role = expert_role(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
        if role is not None:
            experts[_key(role)] = name.removesuffix(WEIGHT)
    return experts


def _key(role: tuple[str, int, str]) -> tuple[str, int, str]:
    """Return layer, number and role of an expert's op."""
    block, number, part = role
    return split(block)[0], number, part


def _in_stack(
    op: str, role: tuple[str, int, str], checkpoint: Checkpoint, order_of: Callable[[str], Order | str]
) -> Place | str:
    block, number, part = role
    stack = next(name for name, roles in STACKS.items() if f"{part}_proj" in roles)
    tensor = f"{block}.experts.{stack}"
    if tensor not in checkpoint.tensors:
        return "the checkpoint holds its experts in a form that is not known here"
    order = order_of(f"{block}.experts")
    if isinstance(order, str):
        return order
    if order.biased:
        return "its experts have biases, which no server runs in FP8 in this form"
    *_, rows, columns = checkpoint.tensors[tensor].shape
    both = columns if order.transposed else rows
    taken = slice(None)
    if part != "down" and order.interleaved:
        taken = slice(0 if part == "gate" else 1, None, 2)
    elif part != "down":
        taken = slice(0, both // 2) if part == "gate" else slice(both // 2, both)
    module = f"{block}.experts.{number}.{part}_proj"
    return Place(module, tensor, number, taken, order.transposed)


def linear_modules(
    checkpoint: Checkpoint, modules: Mapping[str, str], places: Mapping[str, Place]
) -> list[str]:
    """List the modules of a checkpoint that a server may take for linear layers, in alphabetical order.

    These are the modules of matrices that no embedding has, every expert of a stack, and the ops without a
    tensor of their own: a head that shares its weight.

    Args:
        checkpoint: of the model.
        modules: classes by the names of the model's modules.
        places: of the linear ops.
    """
    names = {place.module for place in places.values()}
    for name, stored in checkpoint.tensors.items():
        parent, child = split(name)
        if child == "weight" and len(stored.shape) == 2 and "Embedding" not in modules.get(parent, ""):
            names.add(parent)
        if child in STACKS and len(stored.shape) == 3:
            experts = range(stored.shape[0])
            names |= {f"{parent}.{number}.{role}" for number in experts for role in STACKS[child]}
    return sorted(names)
