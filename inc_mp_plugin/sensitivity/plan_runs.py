"""Runs of a model with each of several plans: in one sweep where its blocks are a chain, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from inc_mp_plugin.core.blocks import repeated_blocks
from inc_mp_plugin.model.chain import NoChain, chain_of
from inc_mp_plugin.model.weights import are_here
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.sensitivity.kept_rounding import PackedRounding
from inc_mp_plugin.sensitivity.memory import free_bytes
from inc_mp_plugin.sensitivity.rounded import Packer, Rounder, rounded
from inc_mp_plugin.sensitivity.sweep import Sweep, parts_of

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.model.outcome import Outcome

    Formats = Mapping[str, str]
    Run = Callable[[], Outcome]
    Results = Iterator[tuple[Sequence[int], Outcome]]

_SHARE = 0.25  # of the memory that is free: for the states of plans side by side, or for rounded weights


class PlanRuns:
    """Runs of a model, which is `as_measured`, with each of several plans, batch by batch.

    The first batch decides which way plans run: the blocks must be a chain, and the first plan must have the
    same losses both ways, bit for bit. The log says which way it is, and why.
    """

    def __init__(self, model: nn.Module, graph: Graph, rounder: Packer, *, as_used: bool) -> None:
        """Prepare; nothing runs yet.

        Args:
            model: in its base format.
            graph: from `capture`.
            rounder: rounds inputs and weights.
            as_used: keep no rounded weight from one plan to the next, where plans run one by one; else those
                that a share of the free memory holds, in the bytes of their format.
        """
        self._model, self._graph, self._rounder, self._as_used = model, graph, rounder, as_used
        self._sweep: Sweep | None = None
        self._keeper: Rounder | None = None
        self._decided = self._checked = False

    def at_once(self, run: Run) -> int:
        """Return how many plans may run side by side, as far as there is memory for their hidden states.

        Args:
            run: runs a batch of the usual size.
        """
        self._decide(run)
        if self._sweep is None:
            return 1
        return max(1, int(self._room() / self._sweep.chain.state_bytes))

    def steps(self, plans: Sequence[Formats]) -> int:
        """Count the steps of a batch, the way that plans run by now."""
        if self._sweep is None:
            return len(plans)
        together = list(filter(self._sweep.holds, plans))
        return self._sweep.steps(together) + len(plans) - len(together)

    def results(self, plans: Sequence[Formats], run: Run, advance: Callable[[], None]) -> Results:
        """Run a batch in the base format, and with every plan.

        Args:
            plans: formats of the ops that are lowered.
            run: runs the batch, without gradients.
            advance: is called after each of the `steps`.

        Yields:
            First the result of the base model, with the numbers of plans that lower nothing; then the numbers
            of others, from 0, that are equal, and their result.
        """
        self._decide(run)
        together = [n for n, plan in enumerate(plans) if self._sweep is not None and self._sweep.holds(plan)]
        apart, with_base = set(range(len(plans))), False
        for members, result in self._swept([plans[n] for n in together], run, advance):
            numbers, with_base = [together[n] for n in members], True
            apart -= set(numbers)
            yield numbers, result
        if not with_base:
            yield [], run()
        for number in sorted(apart):
            with rounded(self._model, self._keeping(), plans[number], as_used=True):
                result = run()
            yield [number], result
            advance()

    def _swept(self, plans: Sequence[Formats], run: Run, advance: Callable[[], None]) -> Results:
        """Run plans in a sweep; end early, or at once, if they turn out to be of no chain."""
        if self._sweep is None or not plans:
            return
        runs = self._sweep.results(plans, run, advance)
        try:
            base = next(runs)
        except NoChain as why:
            self._give_up(str(why))
            return
        yield base
        for members, result in runs:
            if not self._checked:
                with rounded(self._model, self._rounder, plans[members[0]], as_used=True):
                    alone = run()
                if not torch.allclose(alone.losses, result.losses, rtol=0.0, atol=0.0, equal_nan=True):
                    self._give_up("more than the hidden state differs between plans")
                    return
                self._checked = True
            yield members, result

    def _keeping(self) -> Rounder:
        """Return the rounder of plans that run one by one."""
        if self._as_used or not are_here(self._model):
            return self._rounder
        if self._keeper is None:
            self._keeper = PackedRounding(self._rounder, self._room())
        return self._keeper

    def _room(self) -> float:
        """Return the bytes that may be taken for the sake of time."""
        device = next((p.device for p in self._model.parameters()), torch.device("cpu"))
        return _SHARE * (free_bytes(device) or 0)

    def _decide(self, run: Run) -> None:
        """Find out which way plans run, if it is not known."""
        if self._decided:
            return
        self._decided, blocks = True, repeated_blocks(self._graph)
        try:
            chain = chain_of(self._model, blocks, run)
        except NoChain as why:
            self._give_up(str(why))
            return
        self._sweep = Sweep(chain, self._rounder, parts_of(self._graph, blocks))
        say(f"plans are measured together, in one sweep over {len(blocks)} blocks")

    def _give_up(self, why: str) -> None:
        self._sweep = None
        say(f"plans are measured one by one: {why}")
