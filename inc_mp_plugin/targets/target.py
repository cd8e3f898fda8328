"""What every target says about itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """A consumer of INC configurations.

    `device` names the table of INC's that decides what can be quantized ("cpu" or "hpu"); `settings`
    are the INC keys beside the lists; `undecided` are classes of that table that no plan decides,
    which stay in the base format; `added` are modules that the consumer gives to every module that
    holds `matmul_qk`, with their classes: they are not in the captured model. `splits_experts` tells
    that it holds experts as linear modules, where the captured model may have one fused parameter.
    Ops of `kinds` run in any of `formats`, all others in the base format, which is `base` if given.
    `scale_methods` are those of INC's that it runs, the default first.
    """

    name: str
    device: str
    settings: Mapping[str, str]
    undecided: tuple[str, ...]
    added: Mapping[str, str]
    splits_experts: bool = False
    formats: tuple[str, ...] = ("fp8_e4m3", "fp8_e5m2")
    kinds: tuple[str, ...] = ("linear", "conv2d", "bgemm")
    base: str | None = None
    scale_methods: tuple[str, ...] = ()

    def modules(self, captured: Mapping[str, str]) -> dict[str, str]:
        """The consumer's modules, {name: class}, from those of the captured model."""
        modules = dict(captured)
        for name in captured:
            parent, _, child = name.rpartition(".")
            if child == "matmul_qk":
                modules.update({f"{parent}.{new}": kind for new, kind in self.added.items()})
        return modules
