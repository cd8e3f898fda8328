"""gains.json and timing.json: every objective that can be priced for a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import NO_DEMANDS, Demands, Serving
from inc_mp_plugin.core.errors import InputError
from inc_mp_plugin.core.gains import Gains
from inc_mp_plugin.core.plan import Graph
from inc_mp_plugin.core.sensitivity import Sensitivity
from inc_mp_plugin.gain.accelerators import ACCELERATORS
from inc_mp_plugin.gain.bench import TimingSettings
from inc_mp_plugin.gain.bit_operations import bit_operation_gains
from inc_mp_plugin.gain.configurations import free_formats, in_large_groups
from inc_mp_plugin.gain.devices import get_device
from inc_mp_plugin.gain.empirical import candidates, courses, empirical_gains
from inc_mp_plugin.gain.macs import mac_gains
from inc_mp_plugin.gain.memory import memory_gains
from inc_mp_plugin.gain.passes import Request, check_context, prompt
from inc_mp_plugin.gain.roofline import Phase, roofline_gains
from inc_mp_plugin.pipeline.sections import TimingSection
from inc_mp_plugin.runtime import artefacts, result_artefacts, store
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.runtime.reuse import partial, run_stage
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.layout import DECODE, PREFILL, Captured
from inc_mp_plugin.targets.rules import demands
from inc_mp_plugin.targets.timed import runnable_kinds, timed_formats

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from inc_mp_plugin.core.timings import Timing
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.pipeline.recipe import Recipe
    from inc_mp_plugin.stages.stopwatch import Stopwatch

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Clock:
    """Where and how time is measured."""

    device: str
    settings: TimingSettings
    every_group: bool = False


@dataclass(frozen=True, slots=True)
class Prices:
    """What is to be priced: always memory; and time, modelled and measured, as far as it is asked for.

    `formats` are the base format and the lower ones; `ops` those that may leave the base format;
    `device` is the one that time is modelled for; `request` what time is priced for; `objective` is what
    a plan is wanted for, if it is one that is not always priced; `clock` asks for measured time; `demands`
    are those of the consumers.
    """

    formats: tuple[str, ...]
    ops: tuple[str, ...]
    device: str
    request: Request | None = None
    objective: str = "memory"
    clock: Clock | None = None
    demands: Demands = NO_DEMANDS


def runnable_ops(graph: Graph, recipe: Recipe) -> list[str]:
    """Names of the ops that every target can run in a lower format, and the device that is timed too."""
    return runnable(graph, recipe.targets, clock_of(recipe), recipe.formats)


def runnable(graph: Graph, targets: Iterable[str], clock: Clock | None, formats: Iterable[str]) -> list[str]:
    """Names of the ops that these targets, and the device that is timed, can run in these lower formats."""
    kinds = [get_target(target).kinds for target in targets]
    if clock is not None:
        kinds += [runnable_kinds(clock.device, format) for format in formats]
    return [op.name for op in graph.ops if all(op.kind in able for able in kinds)]


def demands_for(graph: Graph, recipe: Recipe, held_back: Mapping[str, str] | None = None) -> Demands:
    """Collect the demands of a recipe's targets, served as the recipe says; see `demands`."""
    serving = Serving(recipe.kv_cache, recipe.attention, recipe.reuse_cache)
    return demands(graph, recipe.targets, serving, held_back)


def clock_of(recipe: Recipe) -> Clock | None:
    """Where a recipe asks for time to be measured, if it does."""
    timing = recipe.timing
    if timing is None and recipe.objective == "empirical_time":
        timing = TimingSection()
    if timing is None:
        return None
    settings = timing.model_dump(exclude={"device", "every_group"})
    return Clock(timing.device, TimingSettings(**settings), timing.every_group)


def prices_of(recipe: Recipe, ops: tuple[str, ...], demanded: Demands) -> Prices:
    """What a recipe asks to be priced."""
    section = recipe.request
    request = Request(recipe.calibration.sequence_length)
    if section is not None:
        request = Request(section.prompt_tokens, section.output_tokens, section.batch_size)
    formats = (recipe.model.dtype, *recipe.formats)
    return Prices(formats, ops, recipe.device, request, recipe.objective, clock_of(recipe), demanded)


def gains_stage(
    subject: Subject, graph: Graph, sensitivity: Sensitivity, prices: Prices, out: Path
) -> dict[str, Gains]:
    """gains.json, and timing.json if time is measured.

    Raises:
        InputError: a price is asked for that cannot be had.
    """
    depends_on: Json = {
        "graph": store.fingerprint(artefacts.graph_to_json(graph)),
        "formats": list(prices.formats),
        "device": prices.device,
    }
    ties, kept = in_large_groups(graph, prices.demands)
    if ties or kept:
        depends_on["ties"] = store.fingerprint({"ties": [list(tie) for tie in ties], "kept": sorted(kept)})
    if prices.objective == "bit_operations":
        depends_on["objective"] = prices.objective
    if prices.objective == "roofline":
        consumer = _consumer(prices)
        depends_on["request"] = asdict(_request(prices))
        depends_on["served by"] = consumer or "no target"
        depends_on["serving"] = asdict(prices.demands.serving)
    measured: dict[str, Gains] = {}
    if prices.clock is not None:
        gains, timing = _measured(subject, graph, sensitivity, prices, prices.clock, out)
        measured = {gains.objective: gains}
        depends_on["timing"] = store.fingerprint(asdict(timing))

    def make() -> tuple[dict[str, Gains], Json]:
        gains = {"memory": memory_gains(graph, prices.formats)}
        if set(prices.formats) <= ACCELERATORS[prices.device].flops.keys():
            gains["theoretical_time"] = mac_gains(graph, prices.formats, prices.device)
        if prices.objective == "bit_operations":
            gains["bit_operations"] = bit_operation_gains(graph, prices.formats)
        if prices.objective == "roofline":
            phases = _phases(subject, graph, prices)
            gains["roofline"] = roofline_gains(
                phases, prices.formats, prices.device, sensitivity.total, ties, kept
            )
        gains |= measured
        return gains, artefacts.gains_to_json(gains)

    return run_stage(out / "gains.json", "gains", depends_on, artefacts.gains_from_json, make)


def stopwatch_of(subject: Subject, graph: Graph, prices: Prices, clock: Clock) -> Stopwatch:
    """What measures a subject's time: its request, or the forward pass of its first batch.

    Raises:
        InputError: the device is missing, or does not run the format.
    """
    from inc_mp_plugin.stages.stopwatch import stopwatch

    work = prices.request or subject.batches[0]
    return stopwatch(
        subject.model, graph, work, prices.formats, subject.batches, clock.device, clock.settings
    )


def timing_depends_on(subject: Subject, prices: Prices, clock: Clock) -> Json:
    """What measured times follow from, the machine included.

    Raises:
        InputError: the device is missing.
    """
    return {
        **subject.depends_on,
        "formats": list(prices.formats),
        "request": asdict(prices.request) if prices.request else None,
        "timing.device": get_device(clock.device).description,
        **{f"timing.{key}": value for key, value in asdict(clock.settings).items()},
    }


def _measured(
    subject: Subject,
    graph: Graph,
    sensitivity: Sensitivity,
    prices: Prices,
    clock: Clock,
    out: Path,
) -> tuple[Gains, Timing]:
    base, low = timed_formats(prices.formats, clock.device)
    ties, kept = in_large_groups(graph, prices.demands)
    choices = free_formats(graph, set(prices.ops) - kept, (base, low), runnable_kinds(clock.device, low))
    listed = courses(graph, choices, sensitivity.total, ties, every_group=clock.every_group)
    wanted = candidates(listed, base)
    depends_on = {
        **timing_depends_on(subject, prices, clock),
        "configurations": store.fingerprint({"all": [dict(one.formats) for one in wanted]}),
    }

    def make() -> tuple[Timing, Json]:
        kept = partial(out / "timing.partial.npz", "timing", depends_on)
        timing = stopwatch_of(subject, graph, prices, clock).measure(wanted, kept)
        return timing, asdict(timing)

    timing = run_stage(out / "timing.json", "timing", depends_on, result_artefacts.timing_from_json, make)
    (out / "timing.partial.npz").unlink(missing_ok=True)
    gains = empirical_gains(listed, timing, graph, base)
    for note in dict.fromkeys(group.note for group in gains.groups if group.note):
        say(f"timing: {note}")
    return gains, timing


def _request(prices: Prices) -> Request:
    if prices.request is None:
        message = "objective roofline needs a request, such as request=Request(prompt_tokens=2048)"
        raise InputError(message)
    return prices.request


def _consumer(prices: Prices) -> str | None:
    """The consumer whose passes are modelled: the first target on Gaudi."""
    names = (name for name in prices.demands.targets if get_target(name).device == "hpu")
    return next(names, None)


def _phases(subject: Subject, planned: Graph, prices: Prices) -> list[Phase]:
    """Graphs of the request's passes, and what of them the consumer runs otherwise."""
    import torch

    from inc_mp_plugin.graph.capture import capture

    request, name = _request(prices), _consumer(prices)
    check_context(subject.model, request)
    idle: Mapping[str, frozenset[str]] = {}
    if name is not None:
        idle = get_target(name).lay_out(Captured.of(planned), prices.demands.serving).idle
    cached = prices.demands.cached
    say("Capturing the passes of the request ...")
    whole = capture(subject.model, prompt(subject.model, request))
    phases = [Phase(whole, idle=idle.get(PREFILL, frozenset()), cached=cached)]
    if request.output_tokens:
        step = {"input_ids": torch.zeros(request.batch_size, 1, dtype=torch.long)}
        tokens = request.prompt_tokens + request.output_tokens // 2
        graph = capture(subject.model, step, cached_tokens=tokens)
        phases.append(Phase(graph, request.output_tokens, idle.get(DECODE, frozenset()), cached))
    return phases
