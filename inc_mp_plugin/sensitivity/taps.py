"""Hooks that read the gradients of each op during one backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from inc_mp_plugin.core.blocks import block_of
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.libraries.torch import is_freed, leaves, map_tensors, version_of
from inc_mp_plugin.model.experts import layer_of
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.model.replay import Replays
from inc_mp_plugin.model.weights import device_of
from inc_mp_plugin.scales.nearest import largest_magnitude
from inc_mp_plugin.sensitivity.expert_taps import ExpertTaps, whole_layers
from inc_mp_plugin.sensitivity.maxabs import raise_to
from inc_mp_plugin.sensitivity.reads import Reader, Reads, add_inputs
from inc_mp_plugin.sensitivity.tap import Tap, check_unchanged, is_empty
from inc_mp_plugin.sensitivity.tapping import Tapping
from inc_mp_plugin.sensitivity.totals import MixedSamplesError, Totals
from inc_mp_plugin.sensitivity.weight_gradients import WeightGradients

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.maxabs import MaxAbs


class Taps:
    """||z * dg/dz||^2 of every op and sample, read while a loss is differentiated.

    Inside the `with`, every floating-point input of an op passes through a branch of its own. So the gradient
    of the branch belongs to this op alone, even where another op reads the same tensor. The weight gradient
    of each sample follows from the op's input and the gradient of the op's output. Calls of one op are added
    before squaring, for one weight has one rounding error.

    The rows of a tensor are the samples, or the tokens of one sample after the other.
    """

    def __init__(self, settings: Tapping) -> None:
        """Prepare for one batch; nothing is hooked yet."""
        graph = settings.graph
        self._settings, self._size, self._together = settings, settings.size, settings.together
        device = device_of(settings.model) or torch.device("cpu")
        self.totals = Totals.zeros(self._size, len(graph.ops), formats=settings.formats, device=device)
        self.maxabs: MaxAbs = dict(settings.maxabs or {})
        self._gradients = WeightGradients(settings.rounding)
        self._flat = {self._size * number for number in settings.tokens}
        self._last: tuple[Tensor, Reads] | None = None  # what the op before this one read
        self._due: dict[int, Reads] = {}  # some gradients have come, others not
        self._apart: set[str] = set()
        self._hooks = ExitStack()
        self.columns = columns = {op.name: column for column, op in enumerate(graph.ops)}
        self._replays = Replays(self._forget)
        layers = whole_layers(settings.model, graph)
        self._experts = ExpertTaps(settings, layers, self.totals, self.maxabs)
        self._taps = {
            op.name: Tap(op.name, op.kind, module_of(settings.model, op.name), columns[op.name])
            for op in graph.ops
            if layer_of(op.name) not in layers and op.name not in settings.apart
        }

    @property
    def called(self) -> frozenset[str]:
        """Names of the ops that ran."""
        ran = (tap.name for tap in self._taps.values() if tap.calls)
        return frozenset([*ran, *self._experts.called, *self._apart])

    def __enter__(self) -> Taps:
        """Put hooks on every op."""
        modules = {name: tap.module for name, tap in self._taps.items()}
        self._hooks.enter_context(watching(modules, self._before, self._after))
        self._hooks.enter_context(self._experts)
        self._hooks.enter_context(self._replays.of(self._settings.model, self._settings.blocks))
        return self

    def __exit__(self, *error: object) -> None:
        """Remove every hook, and drop the tensors that are still held."""
        self._hooks.close()
        self._last = None
        self._due.clear()
        for tap in self._taps.values():
            tap.pairs.clear()
            tap.weight = None

    def add(self, op: str, value: Tensor, of_value: Tensor, of_output: Tensor) -> None:
        """Add a linear op that is tapped apart.

        Args:
            op: its name.
            value: its input.
            of_value: gradient of the input.
            of_output: gradient of the output.
        """
        self._apart.add(op)
        if self._settings.looks:
            raise_to(self.maxabs, {(op, 0): largest_magnitude(value)})
        column = self.columns[op]
        reads = Reads(value, version_of(value), [Reader(op, 0, column, "linear")], {0: of_value})
        self._due[id(reads)] = reads
        self._add_inputs(reads)
        pair = (self.rows(value), self.rows(of_output))
        module: Any = module_of(self._settings.model, op)
        self._gradients.add(self.totals, column, module, module.weight.detach(), calls=[pair])

    def finish(self) -> None:
        """Add what is still due: of ops with an output that the loss ignores, and of those beside them."""
        for reads in list(self._due.values()):
            self._add_inputs(reads)
        for tap in self._taps.values():
            self._add_weight(tap)
        self._experts.finish()

    def restart(self, size: int, *, together: bool) -> None:
        """Start new totals, for another backward pass through the same forward pass.

        Args:
            size: number of rows: the samples, or 1 for all of them together.
            together: see `add_inputs`.
        """
        self.totals = self.totals.restarted(size)
        self._size, self._together = size, together
        self._experts.restart(self.totals, together=together)

    def _forget(self, block: str) -> None:
        """Count the calls of a block's ops anew: it is about to run once more."""
        for tap in self._taps.values():
            if block_of(tap.name, [block]):
                tap.calls = 0
        self._experts.forget(block)

    def _before(self, op: str, args: Any, kwargs: Any) -> Any:
        if is_empty(args, kwargs):
            return None
        tap = self._taps[op]
        tap.calls += 1
        if self._replays.rehearsing:
            return None
        return map_tensors(partial(self._branch, tap, count()), (args, kwargs))

    def _branch(self, tap: Tap, indices: Iterator[int], tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        self.rows(tensor)
        index = next(indices)
        if self._settings.looks:
            raise_to(self.maxabs, {(tap.name, index): largest_magnitude(tensor.detach())})
        branch = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
        reads = self._reads(tensor, Reader(tap.name, index, tap.column, tap.kind))
        add_input = partial(self._add_input, reads, len(reads.readers) - 1)
        branch.register_hook(add_input)  # type: ignore[no-untyped-call]
        return branch

    def _reads(self, tensor: Tensor, reader: Reader) -> Reads:
        """Add an op to those that read a tensor: beside the op before, if that read the same one."""
        if reader.joins and self._last is not None and self._last[0] is tensor:
            self._last[1].readers.append(reader)
            return self._last[1]
        # A hook holds a detached twin: a tensor that its own hook holds would never be freed.
        reads = Reads(tensor.detach(), version_of(tensor), [reader])
        self._last = (tensor, reads) if reader.joins else None
        return reads

    def _after(self, op: str, args: Any, kwargs: Any, output: Tensor) -> None:
        if self._replays.rehearsing or is_empty(args, kwargs):
            return
        tap = self._taps[op]
        if not output.requires_grad:
            message = (
                f"op {tap.name!r} runs with gradients switched off inside the model; "
                "its sensitivity cannot be measured"
            )
            raise InputError(message)
        self.rows(output)
        if tap.kind != "bgemm" and not self._settings.inputs_only:
            value, weight = leaves((args, kwargs))[0].detach(), tap.module.weight.detach()
            add_output = partial(self._add_output, tap, value, weight, version=version_of(value))
            output.register_hook(add_output)  # type: ignore[no-untyped-call]

    def _add_input(self, reads: Reads, place: int, gradient: Tensor) -> None:
        check_unchanged(reads.readers[place].op, reads.value, reads.version)
        reads.gradients[place] = gradient
        self._due[id(reads)] = reads
        if reads.complete:
            self._add_inputs(reads)

    def _add_inputs(self, reads: Reads) -> None:
        del self._due[id(reads)]
        readers, gradients = zip(*reads.taken(), strict=True)
        rows = list(zip(*map(self.rows, (reads.value, *gradients)), strict=True))
        add_inputs(self.totals, rows, readers, errors=self._settings.rounding, together=self._together)

    def _add_output(self, tap: Tap, value: Tensor, weight: Tensor, gradient: Tensor, *, version: int) -> None:
        check_unchanged(tap.name, value, version)
        tap.weight = weight
        tap.pairs.append((value, gradient))
        if len(tap.pairs) == tap.calls:
            self._add_weight(tap)

    def _add_weight(self, tap: Tap) -> None:
        weight, tap.weight = tap.weight, None
        if weight is None:
            return
        if is_freed(weight):
            message = (
                f"op {tap.name!r} runs several times, and the loss reads some of its outputs only; with run: "
                "{parallel: fsdp} its weight is gone by then: give run: {parallel: samples}"
            )
            raise InputError(message)
        pairs = [(self.rows(value), self.rows(gradient)) for value, gradient in tap.pairs]
        tap.pairs.clear()
        self._gradients.add(self.totals, tap.column, tap.module, weight, calls=pairs)

    def rows(self, tensor: Tensor) -> Tensor:
        """Give one row per sample; a single sample is one row, whatever the first axis counts.

        Raises:
            MixedSamplesError: the rows are neither samples nor their tokens.
        """
        if self._size == 1:
            return tensor.unsqueeze(0)
        rows = len(tensor) if tensor.dim() else 0
        if rows == self._size:
            return tensor
        if rows not in self._flat:
            raise MixedSamplesError
        return tensor.view(self._size, -1, *tensor.shape[1:])
