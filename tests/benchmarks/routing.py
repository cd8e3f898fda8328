"""The experts that each token of a mixture is sent to: recorded, compared, and held as they were.

Of routers that return logits, weights of the chosen experts and their numbers, and whose weights are softmax
probabilities divided by their sum, as Mixtral's and Qwen3-MoE's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

Routed = tuple[Tensor, Tensor, Tensor]


def routers(model: nn.Module) -> dict[str, nn.Module]:
    """Find the routers; none in a dense model."""
    return {name: m for name, m in model.named_modules() if type(m).__name__.endswith("TopKRouter")}


@dataclass
class Routing:
    """The base model's choices of experts, call by call, and how many of them have changed since."""

    modules: dict[str, nn.Module]
    base: dict[str, list[Tensor]] = field(default_factory=dict)
    calls: dict[str, int] = field(default_factory=dict)
    flipped: int = 0
    seen: int = 0

    @property
    def flip_share(self) -> float:
        """Share of the routed tokens that at least one expert changed for."""
        return self.flipped / self.seen if self.seen else 0.0

    def recorded(self) -> AbstractContextManager[None]:
        """Record the base model's choices inside a `with`."""
        return self._hooked(self._record)

    def counted(self) -> AbstractContextManager[None]:
        """Count changed choices inside a `with`."""
        return self._hooked(self._count)

    def held(self) -> AbstractContextManager[None]:
        """Send every token to the base model's experts inside a `with`, by the weights that are computed."""
        return self._hooked(self._hold)

    @contextmanager
    def _hooked(self, look: Callable[[str, Routed], Routed | None]) -> Iterator[None]:
        self.calls, self.flipped, self.seen = dict.fromkeys(self.modules, 0), 0, 0
        with ExitStack() as stack:
            for name, module in self.modules.items():
                hook = partial(_look, look, name)
                stack.callback(module.register_forward_hook(hook).remove)
            yield

    def _record(self, name: str, out: Routed) -> None:
        self.base.setdefault(name, []).append(out[2])

    def _of_base(self, name: str) -> Tensor:
        self.calls[name] += 1
        return self.base[name][self.calls[name] - 1]

    def _count(self, name: str, out: Routed) -> None:
        ours, base = out[2].sort(dim=-1).values, self._of_base(name).sort(dim=-1).values
        self.flipped += int((ours != base).any(dim=-1).sum())
        self.seen += len(ours)

    def _hold(self, name: str, out: Routed) -> Routed:
        base = self._of_base(name)
        weights = torch.softmax(out[0].float(), dim=-1).gather(-1, base)
        return out[0], weights / weights.sum(dim=-1, keepdim=True), base


def _look(look: Callable[[str, Routed], Routed | None], name: str, *call: object) -> Routed | None:
    return look(name, call[-1])
