"""Many plans in one sweep over a model's blocks: weights are read and rounded once, prefixes run once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from torch import Tensor

from inc_mp_plugin.model.chain import BlockCall, Chain
from inc_mp_plugin.sensitivity.kept_rounding import KeptRounding
from inc_mp_plugin.sensitivity.rounded import Rounder, rounded

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph

Formats = Mapping[str, str]
Part = frozenset[tuple[str, str]]
Result = TypeVar("Result")


class _Group(NamedTuple):
    """Plans, by their numbers, that lower the same ops so far, and their state; None if they lower none."""

    plans: Sequence[int]
    state: Tensor | None


@dataclass(frozen=True)
class Sweep:
    """A chain of blocks that several plans run through side by side.

    Attributes:
        chain: of the model.
        rounder: rounds inputs and weights.
        part_of: number of the block that an op is in, by the op's name; one more than the last behind the
            blocks.
    """

    chain: Chain
    rounder: Rounder
    part_of: Mapping[str, int]

    def holds(self, plan: Formats) -> bool:
        """Tell if all ops of a plan run in the blocks or behind them."""
        return plan.keys() <= self.part_of.keys()

    def steps(self, plans: Sequence[Formats]) -> int:
        """Count the steps of a batch: runs of a block, and of what is behind the blocks, beside the base."""
        places, seen = range(len(self.chain.blocks) + 1), set[tuple[Part, ...]]()
        for parts in map(self._parts, plans):
            seen.update(parts[: place + 1] for place in places if any(parts[: place + 1]))
        return len(seen)

    def results(
        self, plans: Sequence[Formats], run: Callable[[], Result], advance: Callable[[], None]
    ) -> Iterator[tuple[Sequence[int], Result]]:
        """Run the model once in its base format, and every plan beside it.

        Args:
            plans: formats of the ops that are lowered.
            run: runs the model once, without gradients.
            advance: is called after each step.

        Yields:
            The numbers of equal plans, from 0, and their result. The first is the result of the base model,
            with the plans that lower nothing. None is kept: logits of several plans are never there at once.

        Raises:
            NoChain: the model runs in another way than it did at first.
        """
        parts, behind = [self._parts(plan) for plan in plans], len(self.chain.blocks)
        groups, blocks = [_Group(range(len(plans)), None)], {n: i for i, n in enumerate(self.chain.blocks)}

        def see(call: BlockCall) -> None:
            keeper, before = KeptRounding(self.rounder), groups.copy()
            groups.clear()
            while before:
                group = before.pop()
                for part, members in _split(group.plans, parts, blocks[call.block]).items():
                    if group.state is None and not part:
                        groups.append(_Group(members, None))
                        continue
                    state = call.state if group.state is None else group.state
                    with rounded(self.chain.model, keeper, dict(part), as_used=True):
                        groups.append(_Group(members, call.run(state)))
                    advance()

        with self.chain.watched(see) as passed:
            result = run()
        base, keeper = passed.state, KeptRounding(self.rounder)
        ends = [
            (part, _Group(members, group.state))
            for group in sorted(groups, key=lambda group: min(group.plans))
            for part, members in _split(group.plans, parts, behind).items()
        ]
        groups.clear()
        yield [n for part, group in ends if group.state is None and not part for n in group.plans], result
        del result
        while ends:
            part, (members, state) = ends.pop(0)
            if state is None and not part:
                continue
            with (
                self.chain.ending_in(base if state is None else state),
                rounded(self.chain.model, keeper, dict(part), as_used=True),
            ):
                result = run()
            yield members, result
            del result
            advance()

    def _parts(self, plan: Formats) -> tuple[Part, ...]:
        """Cut a plan into its parts: one per block, and the rest."""
        parts: list[set[tuple[str, str]]] = [set() for _ in range(len(self.chain.blocks) + 1)]
        for op, format_name in plan.items():
            parts[self.part_of[op]].add((op, format_name))
        return tuple(map(frozenset, parts))


def parts_of(graph: Graph, blocks: Sequence[str]) -> dict[str, int]:
    """Number the parts of a model that ops are in; ops that run before the blocks are in none.

    Args:
        graph: from `capture`.
        blocks: from `repeated_blocks`.
    """
    numbers = {f"{block}.": number for number, block in enumerate(blocks)}
    parts: dict[str, int] = {}
    for op in graph.ops:
        own = next((number for start, number in numbers.items() if op.name.startswith(start)), None)
        if own is not None:
            parts[op.name] = own
        elif parts:
            parts[op.name] = len(blocks)
    return parts


def _split(numbers: Sequence[int], parts: Sequence[Sequence[Part]], place: int) -> dict[Part, list[int]]:
    """Split plans by what they lower in one part of the model."""
    members: dict[Part, list[int]] = {}
    for number in numbers:
        members.setdefault(parts[number][place], []).append(number)
    return members
