"""One projection of all experts of a layer: a step of the differentiation, and its weight gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Watch = Callable[[Tensor, Tensor, Tensor], None]


def slices(lengths: Iterable[int]) -> Iterator[slice]:
    """Yield slices of these lengths, one behind the other."""
    start = 0
    for length in lengths:
        yield slice(start, start + length)
        start += length


def products(value: Tensor, linears: Mapping[nn.Linear, int], watch: Watch) -> Tensor:
    """Run linear modules, each on its own rows.

    Args:
        value: rows of the first module, of the second one, and so on; shape (rows, inputs).
        linears: the modules, all of one shape, and the number of rows of each.
        watch: takes the inputs, their gradient and that of the outputs, once these are known.
    """
    parts = list(zip(linears, slices(linears.values()), strict=True))
    output: Tensor = _Products.apply(value, parts, watch)  # type: ignore[no-untyped-call]
    return output


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, parts: Sequence[tuple[nn.Linear, slice]], watch: Watch) -> Tensor:
        ctx.save_for_backward(value)
        ctx.parts, ctx.watch = parts, watch
        output = value.new_empty(len(value), parts[0][0].out_features)
        for linear, rows in parts:
            if linear.bias is None:
                torch.mm(value[rows], linear.weight.T, out=output[rows])
            else:
                torch.addmm(linear.bias, value[rows], linear.weight.T, out=output[rows])
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (value,), (of_output,) = ctx.saved_tensors, gradients
        of_value = torch.empty_like(value)
        for linear, rows in ctx.parts:
            torch.mm(of_output[rows], linear.weight, out=of_value[rows])
        ctx.watch(value, of_value, of_output)
        return of_value, None, None
