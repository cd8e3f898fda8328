"""A model whose ops can be switched between their modules in different formats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import nn

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.model.modules import put_module


class Switch:
    """A model, and for some of its ops one module per lower format beside the one in the base format."""

    def __init__(
        self, model: nn.Module, base: Mapping[str, nn.Module], lower: Mapping[str, Mapping[str, nn.Module]]
    ) -> None:
        """Take the modules of `base`, {op: module}, and of `lower`, {format: {op: module}}."""
        self.model = model
        self._base = {op: base[op] for modules in lower.values() for op in modules}
        self._lower = lower

    @property
    def ops(self) -> tuple[str, ...]:
        """Names of the ops that can be switched."""
        return tuple(self._base)

    def pairs(self) -> Iterator[tuple[str, nn.Module, nn.Module]]:
        """Yield every op with its module in the base format and each one in a lower format."""
        for modules in self._lower.values():
            for op, module in modules.items():
                yield op, self._base[op], module

    def select(self, formats: Mapping[str, str]) -> None:
        """Run these ops in these formats, all others in the base format.

        Raises:
            InputError: an op has no module in its format.
        """
        for op, format_name in formats.items():
            if op not in self._lower.get(format_name, {}):
                message = (
                    f"{op!r} was not converted to {format_name}; calibration never ran it, or it cannot be"
                )
                raise InputError(message)
        for op, base in self._base.items():
            put_module(self.model, op, self._lower[formats[op]][op] if op in formats else base)
