"""Largest magnitudes of the inputs of ops over calibration batches, from which scales follow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.libraries.accelerate import is_hooked
from inc_mp_plugin.libraries.torch import leaves
from inc_mp_plugin.model.batches import batch_size, call, placed, told_nan
from inc_mp_plugin.model.hooks import watching, with_forward
from inc_mp_plugin.model.losses import check_labels, sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.model.weights import stored_weight
from inc_mp_plugin.runtime import ranks
from inc_mp_plugin.scales.nearest import largest_magnitude

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.modes import Kernels

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
    calibration = Calibration(model, graph, loss_fn, {})
    for batch in batches:
        calibration.run(batch)
    calibration.complete()
    return calibration.maxabs


class Calibration:
    """The maxabs of every op's inputs over the batches so far; it grows in place.

    Attributes:
        maxabs: {(op, index of the input): maxabs}.
        first: number of the next batch's first sample.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        loss_fn: LossFunction | None,
        maxabs: MaxAbs,
        *,
        first: int = 1,
        kernels: Kernels | None = None,
    ) -> None:
        """Prepare; nothing has run yet.

        Args:
            model: runs in evaluation mode, and leaves as it came.
            graph: from `capture`.
            loss_fn: as in `measure_sensitivity`.
            maxabs: of earlier batches.
            first: number of the first sample.
            kernels: see `as_measured`.
        """
        self.maxabs, self.first = maxabs, first
        self._model, self._names, self._loss_fn = model, [op.name for op in graph.ops], loss_fn
        self._look = _Look(model, loss_fn)
        self._note, self._kernels = "", kernels

    def run(self, batch: Batch) -> None:
        """Run one more batch without gradients."""
        if self._loss_fn is None:
            check_labels(self._model, batch, self.first)
        with as_measured(self._model, self._kernels), torch.no_grad():
            self.take(batch, self._look.at(batch, self._modules()))

    def take(self, batch: Batch, maxabs: MaxAbs) -> None:
        """Count one more batch, whose maxabs is known."""
        raise_to(self.maxabs, maxabs)
        self._note = self._note or told_nan(batch, self.first)
        self.first += batch_size(batch)

    def complete(self) -> None:
        """Take the largest over all processes, once all batches are there.

        Raises:
            NonFiniteError: a NaN or an infinity in an input or a weight; the text names the op.
        """
        self.maxabs.update(_of_all_ranks(self.maxabs))
        with as_measured(self._model):
            _check_finite(self._model, self._names, self.maxabs, self._note)

    def _modules(self) -> dict[str, nn.Module]:
        return {name: module_of(self._model, name) for name in self._names}


class _Look:
    """Runs of a model for the inputs of its ops alone.

    The output of the op that runs last, a model's head, is read by no op. From the second batch on zeros
    stand in its place: of a small model with many words, the head is a fifth of the time.
    """

    def __init__(self, model: nn.Module, loss_fn: LossFunction | None) -> None:
        """Prepare; nothing has run yet."""
        self._model, self._loss_fn = model, loss_fn
        self._head: str | None = None
        self._batches = 0

    def at(self, batch: Batch, modules: Mapping[str, nn.Module]) -> MaxAbs:
        """Measure the maxabs of one batch; the modules are those of all ops."""
        maxabs, calls = self._run(batch, modules)
        if self._head in calls and calls[-1] != self._head:
            # In this batch another op ran after the head: it may have read the zeros.
            self._head = None
            maxabs, calls = self._run(batch, modules)
        if self._batches == 0 and self._loss_fn is None:
            last = calls[-1] if calls else ""
            head = modules.get(last)
            plain = type(head) is nn.Linear and not is_hooked(head)
            self._head = last if plain and calls.count(last) == 1 else None
        self._batches += 1
        return maxabs

    def _run(self, batch: Batch, modules: Mapping[str, nn.Module]) -> tuple[MaxAbs, list[str]]:
        """Run the model; give the maxabs, and the ops in the order of their calls."""
        maxabs: MaxAbs = {}
        calls: list[str] = []

        def look(op: str, args: Any, kwargs: Any) -> None:
            calls.append(op)
            values = {(op, i): value.detach() for i, value in enumerate(floating_inputs(args, kwargs))}
            # An expert may get no token.
            raise_to(maxabs, {key: largest_magnitude(v) for key, v in values.items() if v.numel()})

        head: Any = None if self._head is None else modules[self._head]
        with watching(modules, before=look), _zeros(head) if head is not None else nullcontext():
            if self._loss_fn is None:
                call(self._model, placed(self._model, batch))
            else:
                sample_losses(self._model, batch, self._loss_fn)
        return maxabs, calls


def _zeros(linear: nn.Linear) -> AbstractContextManager[None]:
    """Let a linear layer give zeros inside a `with`."""
    return with_forward(linear, lambda input: input.new_zeros(*input.shape[:-1], linear.out_features))


def floating_inputs(args: Any, kwargs: Any) -> list[Tensor]:
    """List the inputs of a call that are rounded, in the order of their indices."""
    tensors = (leaf for leaf in leaves((args, kwargs)) if isinstance(leaf, Tensor))
    return [tensor for tensor in tensors if tensor.is_floating_point()]


def raise_to(maxabs: MaxAbs, others: MaxAbs) -> None:
    """Take the larger of both, in place."""
    for key, value in others.items():
        maxabs[key] = torch.maximum(maxabs[key], value) if key in maxabs else value


def to_arrays(maxabs: MaxAbs) -> dict[str, Any]:
    """Name the arrays of maxabs, for a file or for other processes."""
    return {
        "ops": np.array([op for op, _ in maxabs], dtype=str),
        "indices": np.array([index for _, index in maxabs], dtype=np.int64),
        "values": np.array([float(value) for value in maxabs.values()]),
        "dtypes": np.array([str(value.dtype).removeprefix("torch.") for value in maxabs.values()], dtype=str),
    }


def from_arrays(arrays: Mapping[str, Any], device: torch.device) -> MaxAbs:
    """Invert `to_arrays`, on a device."""
    columns = (arrays[name].tolist() for name in ("ops", "indices", "values", "dtypes"))
    return {
        (op, index): torch.tensor(value, dtype=getattr(torch, dtype), device=device)
        for op, index, value, dtype in zip(*columns, strict=True)
    }


def _of_all_ranks(maxabs: MaxAbs) -> MaxAbs:
    """Find the largest over the processes, each of which ran batches of its own."""
    if ranks.size() == 1:
        return maxabs
    device = next(iter(maxabs.values()), torch.zeros(())).device
    largest: MaxAbs = {}
    for part in ranks.exchange_arrays(to_arrays(maxabs)):
        raise_to(largest, from_arrays(part, device))
    return largest


def finite_weight(model: nn.Module, op: str, note: str = "") -> Tensor | None:
    """Return the weight of an op; None for a bgemm, which has none.

    Args:
        model: that has the op.
        op: its name.
        note: ends the text of the error.

    Raises:
        NonFiniteError: a NaN or an infinity in the weight; the text names the op.
    """
    weight = stored_weight(model, op)
    if weight is not None and not largest_magnitude(weight).isfinite():
        message = f"NaN or infinity in the weight of op {op!r}{note}"
        raise NonFiniteError(message)
    return weight


def _check_finite(model: nn.Module, ops: Iterable[str], maxabs: MaxAbs, note: str) -> None:
    """Refuse NaN and infinity, which a scale would spread silently; the error names the first such op."""
    broken = {op for (op, _), largest in maxabs.items() if not largest.isfinite()}
    for op in ops:
        finite_weight(model, op, note)
        if op in broken:
            message = f"NaN or infinity in the input of op {op!r}{note}"
            raise NonFiniteError(message)
