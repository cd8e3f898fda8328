"""Largest magnitudes of the inputs of ops over calibration batches, from which scales follow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.libraries.torch import leaves
from inc_mp_plugin.model.batches import batch_size, call, placed, told_nan
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.losses import check_labels, sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.scales.nearest import largest_magnitude

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction

    MaxAbs = dict[tuple[str, int], Tensor]


def observe_maxabs(
    model: nn.Module, graph: Graph, batches: Iterable[Batch], loss_fn: LossFunction | None
) -> MaxAbs:
    """Measure the maxabs of every op's inputs over all batches: {(op, index of the input): maxabs}.

    Args:
        model: runs in evaluation mode, and leaves as it came.
        graph: from `capture`.
        batches: all calibration batches.
        loss_fn: as in `measure_sensitivity`.

    Raises:
        NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
    """
    maxabs: MaxAbs = {}
    with as_measured(model), torch.no_grad():
        modules = {op.name: module_of(model, op.name) for op in graph.ops}
        look = _Look(model, modules, loss_fn)
        first, note = 1, ""
        for batch in batches:
            if loss_fn is None:
                check_labels(model, batch, first)
            _raise_to(maxabs, look.at(batch))
            note = note or told_nan(batch, first)
            first += batch_size(batch)
        maxabs = _of_all_ranks(maxabs)
        _check_finite(modules, maxabs, note)
    return maxabs


class _Look:
    """Runs of a model for the inputs of its ops alone.

    The output of the op that runs last, a model's head, is read by no op. From the second batch on zeros
    stand in its place: of a small model with many words, the head is a fifth of the time.
    """

    def __init__(
        self, model: nn.Module, modules: Mapping[str, nn.Module], loss_fn: LossFunction | None
    ) -> None:
        """Prepare; nothing has run yet."""
        self._model, self._modules, self._loss_fn = model, modules, loss_fn
        self._head: str | None = None
        self._batches = 0

    def at(self, batch: Batch) -> MaxAbs:
        """Measure the maxabs of one batch."""
        maxabs, calls = self._run(batch)
        if self._head in calls and calls[-1] != self._head:
            # In this batch another op ran after the head: it may have read the zeros.
            self._head = None
            maxabs, calls = self._run(batch)
        if self._batches == 0 and self._loss_fn is None:
            last = calls[-1] if calls else ""
            plain = type(self._modules.get(last)) is nn.Linear
            self._head = last if plain and calls.count(last) == 1 else None
        self._batches += 1
        return maxabs

    def _run(self, batch: Batch) -> tuple[MaxAbs, list[str]]:
        """Run the model; give the maxabs, and the ops in the order of their calls."""
        maxabs: MaxAbs = {}
        calls: list[str] = []

        def look(op: str, args: Any, kwargs: Any) -> None:
            calls.append(op)
            values = {(op, i): value.detach() for i, value in enumerate(floating_inputs(args, kwargs))}
            # An expert may get no token.
            _raise_to(maxabs, {key: largest_magnitude(v) for key, v in values.items() if v.numel()})

        head: Any = None if self._head is None else self._modules[self._head]
        with watching(self._modules, before=look), _zeros(head) if head is not None else nullcontext():
            if self._loss_fn is None:
                call(self._model, placed(self._model, batch))
            else:
                sample_losses(self._model, batch, self._loss_fn)
        return maxabs, calls


@contextmanager
def _zeros(linear: nn.Linear) -> Iterator[None]:
    """Let a linear layer give zeros inside a `with`."""

    def forward(input: Tensor) -> Tensor:
        return input.new_zeros(*input.shape[:-1], linear.out_features)

    attributes = vars(linear)
    own = attributes.get("forward")  # accelerate may have put one there
    attributes["forward"] = forward
    try:
        yield
    finally:
        del attributes["forward"]
        if own is not None:
            attributes["forward"] = own


def floating_inputs(args: Any, kwargs: Any) -> list[Tensor]:
    """List the inputs of a call that are rounded, in the order of their indices."""
    tensors = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def _raise_to(maxabs: MaxAbs, others: MaxAbs) -> None:
    """Take the larger of both, in place."""
    for key, value in others.items():
        maxabs[key] = torch.maximum(maxabs[key], value) if key in maxabs else value


def _of_all_ranks(maxabs: MaxAbs) -> MaxAbs:
    """Find the largest over the processes, each of which ran batches of its own."""
    if ranks.size() == 1:
        return maxabs
    # BF16 has no counterpart in numpy; FP32 holds it exactly.
    mine = {f"{index} {op}": value.float().cpu().numpy() for (op, index), value in maxabs.items()}
    largest: MaxAbs = {}
    for part in ranks.exchange_arrays(mine):
        for name, array in part.items():
            index, _, op = name.partition(" ")
            value, key = torch.from_numpy(array), (op, int(index))
            largest[key] = torch.maximum(largest.get(key, value), value)
    like = next(iter(maxabs.values()), torch.zeros(()))
    return {key: value.to(maxabs.get(key, like)) for key, value in largest.items()}


def finite_weight(module: nn.Module, op: str, note: str = "") -> Tensor | None:
    """Return the weight of an op's module; None for a bgemm, which has none.

    Args:
        module: of the op.
        op: its name.
        note: ends the text of the error.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight; the text names the op.
    """
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        return None
    if not largest_magnitude(weight).isfinite():
        message = f"NaN or infinity in the weight of op {op!r}{note}"
        raise NonFiniteError(message)
    return weight


def _check_finite(modules: Mapping[str, nn.Module], maxabs: MaxAbs, note: str) -> None:
    """Refuse NaN and infinity, which a scale would spread silently; the error names the first such op."""
    broken = {op for (op, _), largest in maxabs.items() if not largest.isfinite()}
    for op, module in modules.items():
        finite_weight(module, op, note)
        if op in broken:
            message = f"NaN or infinity in the input of op {op!r}{note}"
            raise NonFiniteError(message)
