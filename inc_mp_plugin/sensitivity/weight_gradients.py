"""||a * dg/dW||^2 of one weight, sample by sample: a slab of the gradient's rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from inc_mp_plugin.libraries.torch import padded
from inc_mp_plugin.sensitivity.pieces import squared_norm
from inc_mp_plugin.sensitivity.totals import Totals

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Errors

    # Computes the rows of a call's weight gradient into memory.
    Gradient = Callable[[Tensor, Tensor, slice, Tensor], Tensor]

_SLAB = 2**22  # elements: a product this large is as fast as a whole one


class WeightGradients:
    """Squares of weight gradients, of which no more than a slab is there at a time.

    The slabs lie in memory that is used again: fresh memory costs as much time as the product.
    """

    def __init__(self, errors: Errors | None) -> None:
        """Prepare; `errors` are in the formats of the totals, or None."""
        self._errors = errors
        self._memory = torch.empty(0)

    def add(
        self,
        totals: Totals,
        column: int,
        module: Any,
        weight: Tensor,
        *,
        calls: Sequence[tuple[Tensor, Tensor]],
    ) -> None:
        """Add ||W * dg/dW||^2 and ||q * dg/dW||^2 of an op to totals, for each sample.

        Args:
            totals: to add to.
            column: of the op.
            module: of the op.
            weight: of the op, as its calls had it.
            calls: for each call, the rows of samples of its input, and of its output's gradient. They are
                added before squaring, for one weight has one rounding error.
        """
        # By the weight, not by the class: INC goes by the names of classes, which may be anybody's.
        convolves = weight.dim() > 2
        compute: Gradient = partial(_of_convolution, module) if convolves else _rows_of_linear
        for rows in [slice(0, len(weight))] if convolves else _slabs(weight):
            part = weight[rows]
            factors = [(totals.weight, part)]
            if self._errors is not None:
                errors = self._errors
                factors += [(t, errors.of_weight(weight, f, rows)) for f, t in totals.rounding.items()]
            memory = self._like(part)
            for sample in range(len(totals.weight)):
                first, *others = [(x[sample], g[sample]) for x, g in calls]
                gradient = compute(*first, rows, memory)
                for pair in others:
                    gradient += compute(*pair, rows, torch.empty_like(part))
                for total, factor in factors:
                    total[sample, column] += squared_norm(gradient, factor)

    def _like(self, weight: Tensor) -> Tensor:
        like = (self._memory.dtype, self._memory.device) == (weight.dtype, weight.device)
        if not like or self._memory.numel() < weight.numel():
            self._memory = weight.new_empty(weight.numel())
        return self._memory[: weight.numel()].view(weight.shape)


def _slabs(weight: Tensor) -> list[slice]:
    step = max(1, _SLAB * len(weight) // weight.numel())
    return [slice(start, start + step) for start in range(0, len(weight), step)]


def _rows_of_linear(value: Tensor, gradient: Tensor, rows: slice, out: Tensor) -> Tensor:
    """Compute rows of dg/dW = delta^T x, of one sample and call."""
    delta = gradient.reshape(-1, gradient.shape[-1])[:, rows]
    return torch.mm(delta.T, value.reshape(-1, value.shape[-1]), out=out)


def _of_convolution(module: Any, value: Tensor, gradient: Tensor, rows: slice, out: Tensor) -> Tensor:
    """Compute dg/dW of a convolution, of one sample and call; `rows` are all of them."""
    del rows
    value, gradient = (t.reshape(-1, *t.shape[-3:]) for t in (value, gradient))
    result: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
        padded(module, value), out.shape, gradient, module.stride, 0, module.dilation, module.groups
    )
    return out.copy_(result)
