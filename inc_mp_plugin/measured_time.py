"""Measuring a model's time on a device: the model, the request, both formats and the clock together."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from inc_mp_plugin.batches import map_tensors
from inc_mp_plugin.errors import InputError
from inc_mp_plugin.formats import check_formats
from inc_mp_plugin.gain.bench import FAILURES, TimingSettings, one_line
from inc_mp_plugin.gain.configurations import formats_of_ops
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.gain.timing import Candidate, measure
from inc_mp_plugin.plan import Graph
from inc_mp_plugin.progress import say
from inc_mp_plugin.request import Request, batch_passes, request_passes
from inc_mp_plugin.switching import runnable_kinds, switch_to_time

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.batches import Batch
    from inc_mp_plugin.measurements import Timing
    from inc_mp_plugin.store import Partial


@dataclass(frozen=True)
class Stopwatch:
    """A model on a device, and what is timed there.

    `work` is a request, or a batch whose forward pass is timed; `formats` are the base format and one
    lower one; `batches` give scales where a format needs them.
    """

    model: nn.Module
    graph: Graph
    work: Request | Batch
    formats: tuple[str, str]
    batches: Sequence[Batch]
    device: str = "cpu"
    settings: TimingSettings = field(default_factory=TimingSettings)

    def formats_of(self, ops: Collection[str]) -> dict[str, tuple[str, ...]]:
        """Formats that each op can really run in; ops that are not given stay in the base format."""
        kinds = {op.name: op.kind if op.name in ops else "" for op in self.graph.ops}
        return formats_of_ops(kinds, self.formats, runnable_kinds(self.device, self.formats[1]))

    def measure(self, wanted: Sequence[Candidate], partial: Partial) -> Timing:
        """Time configurations; the model leaves as it came (on a Gaudi, INC changes it for good)."""
        device = get_device(self.device)
        base, low = self.formats
        ops = {op for candidate in wanted for op in candidate.formats}
        with _moved(self.model, self.device), torch.inference_mode():
            moved = [map_tensors(batch, lambda t: t.to(self.device)) for batch in self.batches]
            switch = switch_to_time(self.model, self.graph, ops, base, low, self.device, moved)
            if isinstance(self.work, Request):
                static = device.static_shapes
                passes = request_passes(self.model, self.work, static_cache=static, device=self.device)
            else:
                work = map_tensors(self.work, lambda t: t.to(self.device))
                passes = batch_passes(self.model, work)
            say(f"Measuring {len(wanted)} configurations on {device.description} ...")
            try:
                return measure(device, switch.select, passes, wanted, self.settings, partial)
            finally:
                switch.select({})


def stopwatch(
    model: nn.Module,
    graph: Graph,
    work: Request | Batch,
    formats: Sequence[str],
    batches: Sequence[Batch],
    device: str,
    settings: TimingSettings,
) -> Stopwatch:
    """Check what is to be timed before anything is.

    Raises:
        InputError: formats that are not one base and one lower format, or that the device has not.
    """
    base, *lower = check_formats(formats)
    if len(lower) > 1:
        message = (
            f"formats {lower}: time is measured for one lower format at a time, because INC runs one per "
            "model; give a single one"
        )
        raise InputError(message)
    runnable_kinds(device, lower[0])
    get_device(device)
    return Stopwatch(model, graph, work, (base, lower[0]), batches, device, settings)


@contextmanager
def _moved(model: nn.Module, device: str) -> Iterator[None]:
    """Hold a model on a device, in evaluation mode."""
    home = next(model.parameters()).device
    training = {module: module.training for module in model.modules()}
    try:
        model.eval().to(device)
    except FAILURES as error:
        model.to(home)
        message = f"the model cannot be put on {device!r}: {one_line(error)}"
        raise InputError(message) from error
    try:
        yield
    finally:
        model.to(home)
        for module, mode in training.items():
            module.training = mode
