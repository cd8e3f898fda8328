"""A stopwatch: one model on one device, with the request and the two formats that are timed there."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.literals import TimedDevice
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.gain.bench import FAILURES, TimingSettings, one_line
from inc_mp_plugin.gain.configurations import free_formats
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.gain.empirical import candidates, empirical_gains, measured_groups
from inc_mp_plugin.gain.paired_timing import Candidate, measure
from inc_mp_plugin.gain.passes import batch_passes, request_passes
from inc_mp_plugin.inc.switching import switch_to_time
from inc_mp_plugin.libraries.torch import evaluating
from inc_mp_plugin.model.batches import map_tensors
from inc_mp_plugin.model.plain_batches import plain, plain_batches
from inc_mp_plugin.model.wrappers import unwrapped
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.store import Partial
from inc_mp_plugin.targets.timed import runnable_kinds, timed_formats

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.core.timings import Timing
    from inc_mp_plugin.model.batches import Batch


@dataclass(frozen=True)
class Stopwatch:
    """A model, its work, and the device that both are timed on.

    Attributes:
        model: in its base format.
        graph: from `capture`.
        work: a request, or a batch whose forward pass is timed.
        formats: the base format and a lower one.
        batches: calibration batches, for scales where the lower format needs them.
        settings: where and how long to measure.

    Raises:
        InputError: the formats are not one base and one lower format, or the device is missing or does not
            run the lower format.
    """

    model: nn.Module
    graph: Graph
    work: Request | Batch
    formats: Sequence[str]
    batches: Sequence[Batch]
    settings: TimingSettings

    def __post_init__(self) -> None:
        """Refuse formats and devices that cannot be timed, before anything is."""
        timed_formats(self.formats, self.settings.device)
        get_device(self.settings.device)

    def measure(self, configurations: Sequence[Candidate], partial: Partial) -> Timing:
        """Time configurations; the model leaves as it came (on a Gaudi, INC changes it for good)."""
        name = self.settings.device
        device = get_device(name)
        base, lower = self.formats
        ops = {op for configuration in configurations for op in configuration.formats}
        with _moved(self.model, name), torch.inference_mode():
            moved = [map_tensors(batch, lambda t: t.to(name)) for batch in self.batches]
            try:
                switch = switch_to_time(
                    self.model, self.graph, ops, base=base, lower=lower, device=name, batches=moved
                )
            except FAILURES as error:
                message = f"the model cannot be converted to {lower} on {name!r}: {one_line(error)}"
                raise InputError(message) from error
            if isinstance(self.work, Request):
                static = device.static_shapes
                passes = request_passes(self.model, self.work, static_cache=static, device=name)
            else:
                work = map_tensors(self.work, lambda t: t.to(name))
                passes = batch_passes(self.model, work)
            say(f"Measuring {len(configurations)} configurations on {device.description} ...")
            try:
                return measure(
                    device, switch.select, passes, configurations, settings=self.settings, partial=partial
                )
            finally:
                switch.select({})


def time_gains(
    model: nn.Module,
    graph: Graph,
    work: Any,
    *,
    formats: Sequence[str] = ("bf16", "fp8_e4m3"),
    device: TimedDevice | None = None,
    batches: Iterable[Any] = (),
    ops: Collection[str] | None = None,
    sensitivity: Mapping[str, float] | None = None,
    every_group: bool = False,
    settings: TimingSettings | None = None,
) -> Gains:
    """Measure what every configuration of every group saves (section 2.3.1).

    The gain of a group's configuration is the time of the work with everything in the base format, less
    that with this group in this configuration and all others in the base format. Groups of the same
    structure are measured once.

    Args:
        model: in its base format; it leaves as it came (on a Gaudi, INC changes it for good).
        graph: from `capture`.
        work: a `Request`, priced TTFT + output_tokens x TPOT, or a batch whose forward pass is timed.
        formats: the base format and one lower format that the device really runs.
        device: "cpu", "cuda" or "hpu"; that of `settings` if None.
        batches: calibration batches, from which FP8 scales are taken; BF16 needs none.
        ops: names of the ops that may leave the base format; all if None.
        sensitivity: value of each op; decides which configurations of large groups are measured.
        every_group: measure groups of the same structure one by one.
        settings: where and how long to measure.

    Returns:
        Gains in seconds, measured, with standard errors.

    Raises:
        InputError: the device is missing or only emulates the lower format, or the model does not fit on it.
        NonFiniteError: the device reports a time that is not a number.
    """
    settings = settings or TimingSettings()
    if device is not None:
        settings = replace(settings, device=device)
    work = work if isinstance(work, Request) else plain(work, "work")
    watch = Stopwatch(unwrapped(model), graph, work, formats, plain_batches(batches), settings)
    base, lower = formats
    kinds = runnable_kinds(settings.device, lower)
    choices = free_formats(graph, graph.by_name if ops is None else ops, formats, kinds)
    every_group = every_group or settings.every_group
    groups = measured_groups(graph, choices, sensitivity or {}, every_group=every_group)
    with tempfile.TemporaryDirectory(prefix="inc_mp_plugin-") as folder:
        timing = watch.measure(candidates(groups, base), Partial(Path(folder, "timing.npz"), ""))
    return empirical_gains(groups, timing, graph, base)


@contextmanager
def _moved(model: nn.Module, device: TimedDevice) -> Iterator[None]:
    """Hold a model on a device, in evaluation mode."""
    home = next(model.parameters()).device
    with evaluating(model):
        try:
            model.to(device)
        except FAILURES as error:
            model.to(home)
            message = f"the model cannot be put on {device!r}: {one_line(error)}"
            raise InputError(message) from error
        try:
            yield
        finally:
            model.to(home)
