"""A chain of blocks that hand on one hidden state: other states sent through it, or put at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from inc_mp_plugin.libraries.torch import leaves, version_of, with_leaves
from inc_mp_plugin.model.hooks import with_forward
from inc_mp_plugin.model.modules import module_of

Run = Callable[..., Any]
_WITHOUT_MEMORY = (Tensor, type(None), int, float, str, torch.dtype, torch.device)


class NoChain(Exception):
    """The blocks of a model do not hand on one hidden state and nothing else; the text says why."""


class BlockCall(NamedTuple):
    """A block in a pass of the model: its name, what it was called with, and the hidden state among that."""

    block: str
    state: Tensor
    forward: Run
    arguments: Any
    place: int

    def run(self, state: Tensor) -> Tensor:
        """Run the block on another hidden state, with its other arguments; return the state that it hands on.

        Raises:
            NoChain: the block changes its input in place.
        """
        given = leaves(self.arguments)
        given[self.place] = state
        args, kwargs = with_leaves(self.arguments, given)
        version = version_of(state)
        result = leaves(self.forward(*args, **kwargs))
        if version_of(state) != version:
            message = f"{self.block} changes its input in place"
            raise NoChain(message)
        output: Tensor = result[_only_tensor(self.block, result)]
        return output


@dataclass(frozen=True)
class Chain:
    """Blocks of a model of which each reads the only tensor that the one before it returned; see `chain_of`.

    Attributes:
        model: holds the blocks.
        blocks: their names, in the order in which they run.
        place: of the hidden state among all that a block is given.
        outputs: of the blocks, with nothing in place of the tensor.
        state_bytes: size of a hidden state.
    """

    model: nn.Module
    blocks: Sequence[str]
    place: int
    outputs: Mapping[str, Any]
    state_bytes: int

    @contextmanager
    def watched(self, see: Callable[[BlockCall], None]) -> Iterator[Pass]:
        """Show every block to a function, before it runs, while the model runs once inside a `with`.

        Args:
            see: may run the block on other states.

        Yields:
            The pass, which knows the last block's output at its end.

        Raises:
            NoChain: this pass does not go through the blocks as the first one did.
        """
        through = Pass(self.blocks)

        def run(name: str, forward: Run, *args: Any, **kwargs: Any) -> Any:
            given = leaves((args, kwargs))
            if through.enter(name, given) not in {None, self.place}:
                message = f"{name} is called in another way than before"
                raise NoChain(message)
            see(BlockCall(name, given[self.place], forward, (args, kwargs), self.place))
            result = forward(*args, **kwargs)
            through.leave(name, result)
            return result

        with _forwards(self.model, self.blocks, run):
            yield through
        through.end()

    @contextmanager
    def ending_in(self, state: Tensor) -> Iterator[None]:
        """Let passes of the model inside a `with` skip all blocks: what runs behind them reads this state.

        Args:
            state: the last block's output. It may have fewer tokens than a batch, if nothing behind the
                blocks asks for all.
        """

        def run(name: str, forward: Run, *args: Any, **kwargs: Any) -> Any:
            del forward, args, kwargs
            values = [state if leaf is _STATE else leaf for leaf in leaves(self.outputs[name])]
            return with_leaves(self.outputs[name], values)

        with _forwards(self.model, self.blocks, run):
            yield

    @contextmanager
    def shown(self, state: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Let what runs behind the blocks read another hidden state than theirs, inside a `with`.

        Args:
            state: takes the last block's output, and returns what is read.
        """
        last = self.blocks[-1]
        block = module_of(self.model, last)

        def run(forward: Run, *args: Any, **kwargs: Any) -> Any:
            result = forward(*args, **kwargs)
            values = leaves(result)
            place = _only_tensor(last, values)
            values[place] = state(values[place])
            return with_leaves(result, values)

        with with_forward(block, partial(run, block.forward)):
            yield


_STATE = object()  # stands in the place of the tensor in a block's output


def chain_of(model: nn.Module, blocks: Sequence[str], run: Callable[[], object]) -> Chain:
    """Find out by a real pass whether blocks are a chain.

    Each block returns one tensor; the next block reads this very tensor, once, and always at the same place.

    Args:
        model: holds the blocks.
        blocks: from `repeated_blocks`.
        run: runs the model once.

    Raises:
        NoChain: they are none.
    """
    if len(blocks) < 2:
        message = "the model has no repeated blocks"
        raise NoChain(message)
    through, places, outputs = Pass(blocks), set[int](), dict[str, Any]()

    def observe(name: str, forward: Run, *args: Any, **kwargs: Any) -> Any:
        place = through.enter(name, leaves((args, kwargs)))
        if place is not None:
            places.add(place)
        result = forward(*args, **kwargs)
        through.leave(name, result)
        values = [_STATE if isinstance(leaf, Tensor) else leaf for leaf in leaves(result)]
        outputs[name] = with_leaves(result, values)
        return result

    with _forwards(model, blocks, observe):
        run()
    through.end()
    if len(places) > 1:
        message = "the blocks are called in different ways"
        raise NoChain(message)
    return Chain(model, blocks, places.pop(), outputs, through.state.nbytes)


class Pass:
    """A pass through blocks, checked call by call; the last output of a block is its `state`."""

    def __init__(self, blocks: Sequence[str]) -> None:
        """Prepare for these blocks, which are to run in this order."""
        self._blocks, self._done = blocks, 0
        self.state = torch.empty(0)

    def enter(self, name: str, given: Sequence[Any]) -> int | None:
        """Return the place of the last block's output among what a block is given; None for the first."""
        if name not in self._blocks[self._done : self._done + 1]:
            message = f"{name} runs twice, or not in its turn"
            raise NoChain(message)
        for leaf in given:
            if not isinstance(leaf, _WITHOUT_MEMORY):
                message = f"{name} is given a {type(leaf).__name__}, which may keep what a plan shows it"
                raise NoChain(message)
        if not self._done:
            return None
        places = [place for place, leaf in enumerate(given) if leaf is self.state]
        if len(places) != 1:
            message = f"{name} is not given the output of the block before it, as it is and once"
            raise NoChain(message)
        return places[0]

    def leave(self, name: str, result: Any) -> None:
        """Take the output of a block."""
        values = leaves(result)
        self.state = values[_only_tensor(name, values)]
        self._done += 1

    def end(self) -> None:
        """Check that all blocks ran."""
        if self._done < len(self._blocks):
            message = f"{self._blocks[self._done]} did not run"
            raise NoChain(message)


def _only_tensor(name: str, values: Sequence[Any]) -> int:
    """Return the place of the only tensor among the values that a block returned."""
    places = [place for place, value in enumerate(values) if isinstance(value, Tensor)]
    if len(places) != 1:
        message = f"{name} returns {len(places)} tensors, and not one"
        raise NoChain(message)
    return places[0]


@contextmanager
def _forwards(model: nn.Module, blocks: Sequence[str], run: Run) -> Iterator[None]:
    with ExitStack() as stack:
        for name in blocks:
            block = module_of(model, name)
            stack.enter_context(with_forward(block, partial(run, name, block.forward)))
        yield
