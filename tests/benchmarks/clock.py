"""What the benchmarks compare with, and their clock."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch import nn

from inc_mp_plugin.model.losses import language_model_loss


def plain(model: nn.Module, batches: list[dict]) -> None:
    """Run forward and backward of every batch, with the gradients of all weights."""
    for batch in batches:
        language_model_loss(model, batch).sum().backward()
        model.zero_grad(set_to_none=True)


def cpu_seconds(run: Callable[..., object], *arguments: object) -> float:
    """Measure the CPU time of one call, over all threads."""
    start = time.process_time()
    run(*arguments)
    return time.process_time() - start


def ratios(measure: Callable[[list[dict]], object], model: nn.Module, batches: list[dict], pairs: int) -> str:
    """Run a measurement and `plain` in turn; give the median of the ratios of CPU time, and all of them.

    Last comes the ratio of the least times: work beside can only add to a time.
    """
    measure(batches[:1])
    times = [(cpu_seconds(plain, model, batches), cpu_seconds(measure, batches)) for _ in range(pairs)]
    each = [own / base for base, own in times]
    base, own = map(min, zip(*times, strict=True))
    shown = ", ".join(f"{ratio:.3f}" for ratio in each)
    return f"{statistics.median(each):.3f} ({shown}); least {own / base:.3f}"
