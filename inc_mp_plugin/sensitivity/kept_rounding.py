"""A rounder that keeps what it has rounded, for as long as it is used again."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from inc_mp_plugin.libraries.torch import version_of

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Rounder


class KeptRounding:
    """A rounder that rounds a weight once in its life, as far as there is room for the rounded ones."""

    def __init__(self, rounder: Rounder, most_bytes: float = math.inf) -> None:
        """Prepare.

        Args:
            rounder: rounds what is not there yet.
            most_bytes: of the rounded weights.
        """
        self._rounder, self._room = rounder, most_bytes
        self._weights: dict[tuple[int, str], tuple[Tensor, int, Tensor]] = {}

    def input(self, op: str, index: int, value: Tensor, format_name: str) -> Tensor:
        """Round an input of an op.

        Args:
            op: its name.
            index: of the input, from 0.
            value: of the input.
            format_name: to round to.
        """
        return self._rounder.input(op, index, value, format_name)

    def weight(self, weight: Tensor, format_name: str) -> Tensor:
        """Round a weight, or return what it was rounded to before; not to be changed."""
        key = id(weight), format_name
        own, version, rounded = self._weights.get(key, (None, 0, weight))
        if own is weight and version == version_of(weight):
            return rounded
        rounded = self._rounder.weight(weight, format_name)
        if rounded.nbytes <= self._room:
            self._room -= rounded.nbytes
            self._weights[key] = weight, version_of(weight), rounded
        return rounded
