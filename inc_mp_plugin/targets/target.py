"""Facts that every target states about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.literals import IncDevice, OpKind
from inc_mp_plugin.targets.layout import Captured, Layout


@dataclass(frozen=True, slots=True)
class Target:
    """A consumer of plans: of INC configurations, or of checkpoints.

    `device` names the table of INC's that decides what can be quantized ("cpu" or "hpu"); None of a server
    that reads checkpoints, and runs without INC. `lay_out` says where the consumer runs the ops of a captured
    model; `settings` are the INC keys beside the lists.
    Ops of `kinds` run in any of `formats`, all others in the base format, which is `base` if given.
    `scale_methods` are those of INC's that it runs, or the schemes of its checkpoints, the default first.
    """

    name: str
    device: IncDevice | None
    lay_out: Callable[[Captured, Serving], Layout]
    settings: Mapping[str, str] = field(default_factory=dict)
    formats: tuple[str, ...] = ("fp8_e4m3", "fp8_e5m2")
    kinds: tuple[OpKind, ...] = ("linear", "conv2d", "bgemm")
    base: str | None = None
    scale_methods: tuple[str, ...] = ()
