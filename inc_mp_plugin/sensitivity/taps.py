"""Hooks that read each op's own gradients during one backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from inc_mp_plugin.core.errors import InputError, PluginError
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.libraries.torch import leaves, map_tensors, padded, version_of
from inc_mp_plugin.model.hooks import watching
from inc_mp_plugin.model.modules import module_of

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors


class MixedSamplesError(Exception):
    """The rows of a tensor do not belong to one sample each; never reaches the user."""


@dataclass(slots=True)
class _Tap:
    """One op: its module, its column in the results, and calls whose weight gradient is due."""

    name: str
    kind: str
    module: Any  # an nn.Module, whose attributes depend on its kind
    column: int
    calls: int = 0
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # input, output gradient


class Taps:
    """Reads ||z * dg/dz||^2 of every op and sample while a loss is differentiated.

    Inside the `with`, every floating-point input of an op passes through a branch of its own, so that
    its gradient is this op's alone, whoever else reads the same tensor. The gradient of an op's
    output gives, with its input, the weight gradient of each sample; calls of one op are added before
    squaring, for one weight has one rounding error.

    `input` and `weight` have shape (samples, ops), in float64; so has `rounding[format]`, which holds
    ||q * dg/dz||^2 of inputs and weight together with the true rounding error q. `second` holds what of
    these the second inputs of bgemms make up, under the keys "input" and the formats. `largest`, of shape
    (2, ops), is the largest magnitude of the first and the second input, -1 where there is none.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: Graph,
        size: int,
        rounding: Errors | None = None,
        *,
        inputs_only: bool = False,
    ) -> None:
        """Prepare for one batch of `size` samples; nothing is hooked yet."""
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.input = torch.zeros(size, len(graph.ops), dtype=torch.float64, device=device)
        self.weight = torch.zeros_like(self.input)
        self.rounding = {f: torch.zeros_like(self.input) for f in rounding.formats} if rounding else {}
        self.second = {key: torch.zeros_like(self.input) for key in ("input", *self.rounding)}
        self.largest = torch.full_like(self.input[:1], -1.0).repeat(2, 1)
        self._errors = rounding
        self._scratch = torch.empty(0, device=device)
        self._size = size
        self._inputs_only = inputs_only
        self._hooks = ExitStack()
        self._taps = {
            op.name: _Tap(op.name, op.kind, module_of(model, op.name), column)
            for column, op in enumerate(graph.ops)
        }

    @property
    def called(self) -> frozenset[str]:
        """Names of the ops that ran."""
        return frozenset(tap.name for tap in self._taps.values() if tap.calls)

    def __enter__(self) -> Taps:
        """Hook every op."""
        modules = {name: tap.module for name, tap in self._taps.items()}
        self._hooks.enter_context(watching(modules, self._before, self._after))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Remove every hook and drop what was kept."""
        self._hooks.close()
        for tap in self._taps.values():
            tap.pairs.clear()

    def finish(self) -> None:
        """Add weight gradients still due: those of ops one of whose outputs the loss ignores."""
        for tap in self._taps.values():
            self._add_weight(tap)

    def _before(self, op: str, args: Any, kwargs: Any) -> Any:
        if _is_empty(args, kwargs):
            return None
        tap = self._taps[op]
        tap.calls += 1
        return map_tensors(partial(self._branch, tap, count()), (args, kwargs))

    def _branch(self, tap: _Tap, indices: Iterator[int], tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        self._check_rows(tensor)
        index = next(indices)
        if not self._inputs_only and index < len(self.largest):
            largest = self.largest[index, tap.column]
            torch.maximum(largest, largest_magnitude(tensor.detach()).double(), out=largest)
        branch = tensor.view_as(tensor) if tensor.requires_grad else tensor.detach().requires_grad_()
        # The hook keeps a detached twin: a tensor kept by its own hook would never be freed.
        add_input = partial(self._add_input, tap, index, tensor.detach(), version_of(tensor))
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
        self._check_rows(output)
        if tap.kind != "bgemm" and not self._inputs_only:
            value = leaves((args, kwargs))[0].detach()
            add_output = partial(self._add_output, tap, value, version_of(value))
            output.register_hook(add_output)  # type: ignore[no-untyped-call]

    def _check_rows(self, tensor: Tensor) -> None:
        if self._size > 1 and (tensor.dim() == 0 or tensor.shape[0] != self._size):
            raise MixedSamplesError

    def _add_input(self, tap: _Tap, index: int, value: Tensor, version: int, gradient: Tensor) -> None:
        _check_unchanged(tap, value, version)
        parts = {"input": value}
        if self._errors is not None:
            for format_name in self.rounding:
                parts[format_name] = self._errors.of_input(tap.name, index, value, format_name)
        of_second = tap.kind == "bgemm" and index == 1
        for key, part in parts.items():
            rows = self.input if key == "input" else self.rounding[key]
            for sample, (x, g) in enumerate(zip(self._rows(part), self._rows(gradient), strict=True)):
                norm = self._squared_norm(x, g)
                rows[sample, tap.column] += norm
                if of_second:
                    self.second[key][sample, tap.column] += norm

    def _add_output(self, tap: _Tap, value: Tensor, version: int, gradient: Tensor) -> None:
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
        parts = [(self.weight, weight)]
        if self._errors is not None:
            parts += [(rows, self._errors.of_weight(weight, f)) for f, rows in self.rounding.items()]
        for sample in range(self._size):
            first, *others = [(x[sample], g[sample]) for x, g in pairs]
            _weight_gradient(tap, *first, buffer)
            for pair in others:
                buffer += _weight_gradient(tap, *pair, torch.empty_like(weight))
            for rows, factor in parts:
                rows[sample, tap.column] += self._squared_norm(buffer, factor)

    def _squared_norm(self, a: Tensor, b: Tensor) -> Tensor:
        """||a * b||^2 in FP32, formed in memory that is used again: fresh memory costs more time."""
        if self._scratch.numel() < a.numel():
            self._scratch = torch.empty(a.numel(), dtype=torch.float32, device=a.device)
        flat = self._scratch[: a.numel()]
        torch.mul(a.float(), b.float(), out=flat.view(a.shape))
        return torch.dot(flat, flat)

    def _rows(self, tensor: Tensor) -> Tensor:
        """One row per sample; a single sample is one row, whatever its first axis counts."""
        return tensor.unsqueeze(0) if self._size == 1 else tensor


def largest_magnitude(tensor: Tensor, dim: int | None = None) -> Tensor:
    """The largest magnitude of a tensor's elements, or along an axis, without a copy of the tensor."""
    low, high = tensor.aminmax(dim=dim)
    return torch.maximum(-low, high)


def _is_empty(args: Any, kwargs: Any) -> bool:
    """Whether a call is of an expert that no token was sent to."""
    return any(isinstance(x, Tensor) and not x.numel() for x in leaves((args, kwargs)))


def _weight_gradient(tap: _Tap, value: Tensor, gradient: Tensor, out: Tensor) -> Tensor:
    """dg/dW of one sample and call, into `out`: delta^T x, or its analogue for a convolution."""
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
