"""Blocks that keep nothing but their inputs, and run once more when their gradients are due."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from inc_mp_plugin.libraries.glibc import give_back_freed, kept_freed
from inc_mp_plugin.libraries.torch import leaves, map_tensors, with_leaves
from inc_mp_plugin.model.hooks import with_forward
from inc_mp_plugin.model.in_files import kept_in_files
from inc_mp_plugin.model.modules import module_of

_PLACE = object()  # of a tensor, in the arguments of a block
_GROWTH = 1.25  # of the memory that was freed and is used again


class Replays:
    """Blocks of a model under reentrant checkpoints.

    A block first runs without gradients, and nothing of it is kept but its inputs, large ones on a CPU in
    files. During a backward pass it runs again, with gradients, and gives the same values. Several backward
    passes replay it several times.

    Attributes:
        rehearsing: True while a block runs without gradients.
    """

    def __init__(self, before_replay: Callable[[str], None]) -> None:
        """Prepare.

        Args:
            before_replay: is told the name of a block that is about to run with gradients.
        """
        self.rehearsing = False
        self._before_replay = before_replay
        self._freed = _Freed()

    @contextmanager
    def of(self, model: nn.Module, blocks: Sequence[str]) -> Iterator[None]:
        """Put these blocks of a model under checkpoints inside a `with`."""
        with ExitStack() as stack:
            for name in blocks:
                block = module_of(model, name)
                stack.enter_context(with_forward(block, partial(self._run, name, block.forward)))
            yield

    def _run(self, name: str, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        tensors = [leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        # What runs once more must not hold the inputs themselves: they may lie in files by then.
        frame = map_tensors(lambda _: _PLACE, (args, kwargs))
        results: list[Any] = []

        def run(_: Tensor, *own: Tensor) -> tuple[Tensor, ...]:
            values = iter(own)
            inner = [next(values) if leaf is _PLACE else leaf for leaf in leaves(frame)]
            arguments, keywords = with_leaves(frame, inner)
            with self._rehearsal(name):
                result = forward(*arguments, **keywords)
            if not torch.is_grad_enabled():  # kept after a replay, it would hold all that ran
                results.append(result)
            return tuple(leaf for leaf in leaves(result) if isinstance(leaf, Tensor))

        # The first block's input comes from a frozen embedding: without a gradient there, none would flow.
        with kept_in_files(tensors):
            outputs = iter(checkpoint(run, torch.zeros((), requires_grad=True), *tensors, use_reentrant=True))
        result = results.pop()
        return with_leaves(result, [next(outputs) if isinstance(x, Tensor) else x for x in leaves(result)])

    @contextmanager
    def _rehearsal(self, name: str) -> Iterator[None]:
        before, self.rehearsing = self.rehearsing, not torch.is_grad_enabled()
        self._freed = self._freed.in_phase(self.rehearsing)
        self._freed.bound()
        if not self.rehearsing:
            self._before_replay(name)
        try:
            yield
        finally:
            self.rehearsing = before


class _Freed:
    """Memory that blocks have freed, and that the C library keeps for the next.

    Each block uses again what the one before it freed, so that nothing is to be gained by giving it back, and
    a third of the time of a pass is lost. But the pieces break up, and more is kept the more blocks have run.
    """

    def __init__(self, *, rehearsing: bool = True) -> None:
        """Prepare for first runs, or for replays; nothing is freed yet."""
        self._rehearsing, self._runs, self._most = rehearsing, 0, 0.0

    def in_phase(self, rehearsing: bool) -> _Freed:
        """Return what counts first runs, or replays: anew where the other phase was before."""
        return self if self._rehearsing == rehearsing else _Freed(rehearsing=rehearsing)

    def bound(self) -> None:
        """Give freed memory back before the first block, and when more is kept than the first block freed."""
        kept, self._runs = kept_freed(), self._runs + 1
        if self._runs == 2 and kept is not None:
            self._most = _GROWTH * kept
        if kept is None or kept > self._most:
            give_back_freed()
