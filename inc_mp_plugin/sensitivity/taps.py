"""Hooks that read the gradients of each op during one backward pass."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from inc_mp_plugin.core.errors import InputError, PluginError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.libraries.torch import leaves, map_tensors, padded, version_of
from inc_mp_plugin.model.experts import layer_of
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.modules import module_of
from inc_mp_plugin.sensitivity.expert_taps import ExpertTaps, whole_layers
from inc_mp_plugin.sensitivity.totals import MixedSamplesError, Totals

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors


@dataclass(slots=True)
class _Tap:
    """One op: its module, its column in the results, and its calls whose weight gradient is due."""

    name: str
    kind: str
    module: Any  # an nn.Module, whose attributes depend on its kind
    column: int
    calls: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # input, output gradient


class Taps:
    """||z * dg/dz||^2 of every op and sample, read while a loss is differentiated.

    Inside the `with`, every floating-point input of an op passes through a branch of its own. So the gradient
    of the branch belongs to this op alone, even where another op reads the same tensor. The weight gradient
    of each sample follows from the op's input and the gradient of the op's output. Calls of one op are added
    before squaring, for one weight has one rounding error.

    The rows of a tensor are the samples, or the tokens of one sample after the other.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        size: int,
        rounding: Errors | None = None,
        *,
        tokens: Collection[int] = (),
        inputs_only: bool = False,
    ) -> None:
        """Prepare for one batch; nothing is hooked yet.

        Args:
            model: to be hooked; experts are exposed in it.
            graph: its ops.
            size: number of samples in the batch.
            rounding: rounding errors q in some formats; without, only z counts.
            tokens: numbers of tokens that a sample may have.
            inputs_only: leave out the gradients of weights.
        """
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        formats = rounding.formats if rounding else ()
        self.totals = Totals.zeros(size, len(graph.ops), formats=formats, device=device)
        self._errors = rounding
        self._scratch = torch.empty(0, device=device)
        self._size = size
        self._flat = {size * number for number in tokens}
        self._inputs_only = inputs_only
        self._hooks = ExitStack()
        columns = {op.name: column for column, op in enumerate(graph.ops)}
        layers = whole_layers(model, graph)
        self._experts = ExpertTaps(layers, columns, self.totals, rounding, inputs_only=inputs_only)
        self._taps = {
            op.name: _Tap(op.name, op.kind, module_of(model, op.name), columns[op.name])
            for op in graph.ops
            if layer_of(op.name) not in layers
        }

    @property
    def called(self) -> frozenset[str]:
        """Names of the ops that ran."""
        return frozenset([*(tap.name for tap in self._taps.values() if tap.calls), *self._experts.called])

    def __enter__(self) -> Taps:
        """Put hooks on every op."""
        modules = {name: tap.module for name, tap in self._taps.items()}
        self._hooks.enter_context(watching(modules, self._before, self._after))
        self._hooks.enter_context(self._experts)
        return self

    def __exit__(self, *error: object) -> None:
        """Remove every hook, and drop the tensors that are still held."""
        self._hooks.close()
        for tap in self._taps.values():
            tap.pairs.clear()

    def finish(self) -> None:
        """Add the weight gradients that are still due: of ops with an output that the loss ignores."""
        for tap in self._taps.values():
            self._add_weight(tap)
        self._experts.finish()

    def restart(self, size: int) -> None:
        """Start new totals, for another backward pass through the same forward pass.

        Args:
            size: number of rows: the samples, or 1 for all of them together.
        """
        self.totals = self.totals.restarted(size)
        self._size = size
        self._experts.restart(self.totals)

    def _before(self, op: str, args: Any, kwargs: Any) -> Any:
        if _is_empty(args, kwargs):
            return None
        tap = self._taps[op]
        tap.calls += 1
        return map_tensors(partial(self._branch, tap, count()), (args, kwargs))

    def _branch(self, tap: _Tap, indices: Iterator[int], tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        self._rows(tensor)
        index = next(indices)
        if not self._inputs_only and index < len(self.totals.largest):
            largest = self.totals.largest[index, tap.column]
            torch.maximum(largest, largest_magnitude(tensor.detach()).double(), out=largest)
        branch = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
        # The hook holds a detached twin: a tensor that its own hook holds would never be freed.
        add_input = partial(self._add_input, tap, index, tensor.detach(), version=version_of(tensor))
        branch.register_hook(add_input)  # type: ignore[no-untyped-call]
        return branch

    def _after(self, op: str, args: Any, kwargs: Any, output: Tensor) -> None:
        if _is_empty(args, kwargs):
            return
        tap = self._taps[op]
        if not output.requires_grad:
            message = (
                f"op {tap.name!r} runs with gradients switched off inside the model; "
                "its sensitivity cannot be measured"
            )
            raise InputError(message)
        self._rows(output)
        if tap.kind != "bgemm" and not self._inputs_only:
            value = leaves((args, kwargs))[0].detach()
            add_output = partial(self._add_output, tap, value, version=version_of(value))
            output.register_hook(add_output)  # type: ignore[no-untyped-call]

    def _add_input(self, tap: _Tap, index: int, value: Tensor, gradient: Tensor, *, version: int) -> None:
        _check_unchanged(tap, value, version)
        parts = {"input": value}
        if self._errors is not None:
            for format_name in self.totals.rounding:
                parts[format_name] = self._errors.of_input(tap.name, index, value, format_name)
        of_second = tap.kind == "bgemm" and index == 1
        for key, part in parts.items():
            rows = self.totals.of_inputs[key]
            for sample, (x, g) in enumerate(zip(self._rows(part), self._rows(gradient), strict=True)):
                norm = self._squared_norm(x, g)
                rows[sample, tap.column] += norm
                if of_second:
                    self.totals.second[key][sample, tap.column] += norm

    def _add_output(self, tap: _Tap, value: Tensor, gradient: Tensor, *, version: int) -> None:
        _check_unchanged(tap, value, version)
        tap.pairs.append((value, gradient))
        if len(tap.pairs) == tap.calls:
            self._add_weight(tap)

    def _add_weight(self, tap: _Tap) -> None:
        if not tap.pairs:
            return
        pairs = [(self._rows(value), self._rows(gradient)) for value, gradient in tap.pairs]
        tap.pairs.clear()
        weight = tap.module.weight.detach()
        buffer = torch.empty_like(weight)
        parts = [(self.totals.weight, weight)]
        if self._errors is not None:
            parts += [(rows, self._errors.of_weight(weight, f)) for f, rows in self.totals.rounding.items()]
        for sample in range(self._size):
            first, *others = [(x[sample], g[sample]) for x, g in pairs]
            _weight_gradient(tap, *first, buffer)
            for pair in others:
                buffer += _weight_gradient(tap, *pair, torch.empty_like(weight))
            for rows, factor in parts:
                rows[sample, tap.column] += self._squared_norm(buffer, factor)

    def _squared_norm(self, a: Tensor, b: Tensor) -> Tensor:
        """Compute ||a * b||^2 in FP32, in memory that is used again: fresh memory costs more time."""
        if self._scratch.numel() < a.numel():
            self._scratch = torch.empty(a.numel(), dtype=torch.float32, device=a.device)
        flat = self._scratch[: a.numel()]
        torch.mul(a.float(), b.float(), out=flat.view(a.shape))
        return torch.dot(flat, flat)

    def _rows(self, tensor: Tensor) -> Tensor:
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


def largest_magnitude(tensor: Tensor, dim: int | None = None) -> Tensor:
    """Find the largest magnitude of a tensor's elements, or along an axis, without a copy of the tensor."""
    least, most = tensor.aminmax(dim=dim)
    return torch.maximum(-least, most)


def _is_empty(args: Any, kwargs: Any) -> bool:
    """Tell whether a call is of an expert that no token was sent to."""
    return any(isinstance(x, Tensor) and not x.numel() for x in leaves((args, kwargs)))


def _weight_gradient(tap: _Tap, value: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
    """Compute dg/dW of one sample and call, into `out`: delta^T x, or its analogue for a convolution."""
    module = tap.module
    if tap.kind == "linear":
        # Into the same memory for every sample: fresh memory costs as much time as the product.
        rows = gradient.reshape(-1, gradient.shape[-1])
        return torch.mm(rows.T, value.reshape(-1, value.shape[-1]), out=out)
    value, gradient = (t.reshape(-1, *t.shape[-3:]) for t in (value, gradient))
    result: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        padded(module, value), module.weight.shape, gradient, module.stride, 0, module.dilation, module.groups
    )
    return out.copy_(result)


def _check_unchanged(tap: _Tap, value: Tensor, version: int) -> None:
    if version_of(value) != version:
        message = (
            f"the input of op {tap.name!r} is changed in place after the op has read it, so its "
            "sensitivity would be wrong; replace the in-place operation in the model's forward"
        )
        raise PluginError(message)
