"""Rounders that keep what they have rounded, for as long as it is used again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inc_mp_plugin.libraries.torch import version_of
from inc_mp_plugin.sensitivity.packed import Packed

if TYPE_CHECKING:
    from inc_mp_plugin.sensitivity.rounded import Packer, Rounder


class KeptRounding:
    """A rounder that rounds a weight once in its life, and keeps the rounded weight as it is."""

    def __init__(self, rounder: Rounder) -> None:
        """Prepare; the rounder rounds what is not there yet."""
        self._rounder = rounder
        self._kept: dict[tuple[int, str], tuple[Tensor, int, Tensor | Packed]] = {}

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
        if key in self._kept:
            own, version, rounded = self._kept[key]
            if own is weight and version == version_of(weight):
                return rounded.weight() if isinstance(rounded, Packed) else rounded
        rounded = self._rounder.weight(weight, format_name)
        to_keep = self._to_keep(weight, rounded, format_name)
        if to_keep is not None:
            self._kept[key] = weight, version_of(weight), to_keep
        return rounded

    def _to_keep(self, weight: Tensor, rounded: Tensor, format_name: str) -> Tensor | Packed | None:
        """Choose what is kept of a rounded weight; None if nothing is."""
        del self, weight, format_name
        return rounded


class PackedRounding(KeptRounding):
    """A rounder that keeps rounded weights in the bytes of their format, as far as there is room for them."""

    def __init__(self, packer: Packer, most_bytes: float) -> None:
        """Prepare.

        Args:
            packer: rounds what is not there yet.
            most_bytes: of the packed weights.
        """
        super().__init__(packer)
        self._packer, self._room = packer, most_bytes

    def _to_keep(self, weight: Tensor, rounded: Tensor, format_name: str) -> Tensor | Packed | None:
        packed = self._packer.packed(weight, format_name)
        # FP8 of a device may be another one, and NaN has other bits: such a weight is rounded each time.
        if packed.nbytes > self._room or not torch.equal(packed.weight(), rounded):
            return None
        self._room -= packed.nbytes
        return packed
