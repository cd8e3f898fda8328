"""The part of a language model behind its blocks, run on some tokens at a time: fewer logits are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.blocks import block_of, repeated_blocks
from inc_mp_plugin.core.footprint import LOGITS_AT_ONCE
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.model.batches import map_tensors, placed, samples
from inc_mp_plugin.model.chain import Chain, NoChain, chain_of
from inc_mp_plugin.model.heads import head_loss
from inc_mp_plugin.model.losses import logits_of
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.model.weights import are_here

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

_TRIED = 16  # tokens
_OF_TOKENS = {"input_ids", "attention_mask", "position_ids", "labels"}  # in a batch that can be cut so


@dataclass(frozen=True)
class Tail:
    """The part of a language model behind a chain of blocks, where every token counts by itself.

    Attributes:
        chain: of the blocks.
        op: name of the only op behind the blocks, the head.
        classes: logits of a token.
    """

    chain: Chain
    op: str
    classes: int

    @property
    def head(self) -> nn.Module:
        """The module of the op."""
        return module_of(self.chain.model, self.op)

    def serves(self, batch: Batch) -> bool:
        """Tell if a batch has more logits than are computed at once."""
        return isinstance(batch, dict) and batch["input_ids"].numel() * self.classes > LOGITS_AT_ONCE

    def parts(self, batch: Batch) -> list[slice]:
        """Cut the tokens of a batch into parts that run one after the other."""
        count, tokens = _ids(batch).shape
        step = max(1, LOGITS_AT_ONCE // (count * self.classes))
        return [slice(start, min(start + step, tokens)) for start in range(0, tokens, step)]

    def state(self, batch: Batch) -> Tensor:
        """Run the blocks; give the hidden state that the tail reads, shape (samples, tokens, width)."""
        states: list[Tensor] = []

        def first_token(state: Tensor) -> Tensor:
            states.append(state)
            return state[:, :1]

        with self.chain.shown(first_token):
            logits_of(self.chain.model, batch)
        return states[0]

    def logits(self, batch: Batch, state: Tensor) -> Tensor:
        """Run the tail on the hidden state of some tokens, shape (samples, some tokens, classes)."""
        with self.chain.ending_in(state):
            return logits_of(self.chain.model, batch)


class Tails:
    """The tail of a model, looked for when the first batch comes."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        """Prepare; nothing has run yet."""
        self._model, self._graph = model, graph
        self._tail: Tail | None = None
        self._tried = False

    def of(self, batch: Batch) -> Tail | None:
        """Return the tail if a batch has more logits than are computed at once."""
        if not self._tried:
            self._tried = True
            if are_here(self._model):  # else blocks must run in every pass, for weights to come
                self._tail = tail_of(self._model, self._graph, batch)
        return self._tail if self._tail is not None and self._tail.serves(batch) else None


def tail_of(model: nn.Module, graph: Graph, batch: Batch) -> Tail | None:
    """Find the tail of a language model, tried on a few tokens; None if it has none.

    Args:
        model: as it is measured.
        graph: from `capture`.
        batch: of samples.
    """
    blocks = repeated_blocks(graph)
    behind = _behind(graph, blocks)
    texts = isinstance(batch, dict) and "input_ids" in batch and batch.keys() <= _OF_TOKENS
    if head_loss(model) is not None or len(behind) != 1 or not texts:
        return None
    few = placed(model, _few(batch))
    wholes: list[Tensor] = []
    with torch.no_grad():
        try:
            chain = chain_of(model, blocks, lambda: wholes.append(logits_of(model, few)))
        except NoChain:
            return None
        tail, whole = Tail(chain, behind[0], wholes[0].shape[-1]), wholes[0]
        halves = _halves(tail, few, whole)
        if halves is None or whole.shape[:2] != _ids(few).shape:
            return None
        off = (torch.cat(halves, dim=1) - whole).abs().max()
    return tail if bool(off <= 4 * torch.finfo(whole.dtype).eps * whole.abs().max()) else None


def _halves(tail: Tail, few: Batch, whole: Tensor) -> list[Tensor] | None:
    """Run a tail on the first half of the tokens, then on the others; None if it asks for all of them.

    Args:
        tail: to be tried.
        few: tokens.
        whole: their logits.
    """
    middle = (whole.shape[1] + 1) // 2
    try:
        state = tail.state(few)
        halves = [tail.logits(few, part) for part in torch.split(state, middle, dim=1)]
    # The same code has just run on all tokens, so it fails for there being fewer: shapes that do not fit
    # (RuntimeError of torch, as in GPT-2's view), a token that is not there (IndexError), or a check of the
    # model's own (ValueError). Any other error is not of that kind.
    except (RuntimeError, IndexError, ValueError):
        return None
    same = [half.shape for half in halves] == [half.shape for half in torch.split(whole, middle, dim=1)]
    return halves if same and state.shape[:2] == whole.shape[:2] else None


def _behind(graph: Graph, blocks: tuple[str, ...]) -> list[str]:
    """List the linear ops that run after the last block; nothing if others do, too."""
    places = [place for place, op in enumerate(graph.ops) if block_of(op.name, blocks) is not None]
    last = graph.ops[places[-1] + 1 :] if places else ()
    return [op.name for op in last] if all(op.kind == "linear" and op.calls == 1 for op in last) else []


def _few(batch: Batch) -> Batch:
    """Cut a few tokens of one sample out of a batch."""
    few: Batch = map_tensors(samples(batch, 0, 1), lambda tensor: tensor[:, :_TRIED])
    return few


def _ids(batch: Batch) -> Tensor:
    ids: Tensor = batch["input_ids"]  # type: ignore[index, call-overload]
    return ids
