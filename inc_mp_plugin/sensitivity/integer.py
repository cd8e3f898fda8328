"""The noise of integers: uniform over one step, the same for every element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inc_mp_plugin.scales.nearest import largest_magnitude

_STEPS = 255  # of 8 bits, between the least and the largest number
INT8 = "int8"


@dataclass(frozen=True, slots=True)
class IntegerNoise:
    """Root mean square of the rounding noise of INT8, one tensor at a time.

    Rounding to steps of size D makes errors that are uniform on [-D / 2, D / 2], so that::

        E[q^2] = D^2 / 12,    D = 2 maxabs / 255

    whatever the value. Inputs have one step D per tensor, from the `maxabs` of op and index. Weights have one
    step per output channel. The taps take this noise in the place of the measured rounding errors of FP8
    (`Rounding`), and make sum_k D_k^2 / 12 (dg/dz_k)^2 of ||q * dg/dz||^2.
    """

    maxabs: Mapping[tuple[str, int], Tensor]
    formats: tuple[str, ...] = (INT8,)

    def of_input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Return the noise of an input of an op, in FP32 and the value's shape.

        Args:
            op: its name.
            index: of the input, from 0.
            value: of the input; only its shape counts.
            format_name: "int8".
        """
        del format_name
        return torch.full(value.shape, float(_noise(self.maxabs[op, index])), device=value.device)

    def of_weight(self, weight: Tensor, format_name: str, rows: slice = slice(None)) -> Tensor:
        """Return the noise of a weight, in FP32 and the weight's shape, whose first axis counts channels.

        Args:
            weight: the whole of it.
            format_name: "int8".
            rows: of the first axis, that alone are returned.

        Example:
            >>> noise = IntegerNoise({}).of_weight(torch.tensor([[3.0, -51.0], [255.0, 0.0]]), "int8")
            >>> (noise**2 * 12).round(decimals=4)  # steps of 2 * 51 / 255 and 2
            tensor([[0.1600, 0.1600],
                    [4.0000, 4.0000]])
        """
        del format_name
        part = weight[rows]
        channels = largest_magnitude(part.flatten(1), dim=1)
        return _noise(channels).view(-1, *[1] * (part.dim() - 1)).expand(part.shape)


def _noise(maxabs: Tensor) -> Tensor:
    return 2 * maxabs.float() / _STEPS / 12**0.5
