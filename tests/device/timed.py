"""A Llama whose groups and plans are timed, as calls that a CUDA graph can hold or as plain calls.

One stream overlaps nothing, so that single ops add up as well as groups do: groups are a fact of Gaudi's
compiler. Here they are measured all the same, as the method does it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import inc_mp_plugin as mp
from device.clock import captured
from device.machine import Part
from device.passes import SHAPES, TINY, build
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.request import Request
from inc_mp_plugin.core.timings import Timing
from inc_mp_plugin.gain.bench import Pass, TimingSettings
from inc_mp_plugin.gain.devices import CPU, CUDA
from inc_mp_plugin.gain.paired_timing import Candidate, measure
from inc_mp_plugin.gain.passes import prompt, request_passes
from inc_mp_plugin.libraries.transformers import cache_argument, cache_of
from inc_mp_plugin.model.float8 import float8_switch
from inc_mp_plugin.model.switch import Switch
from inc_mp_plugin.runtime.store import Partial

FORMATS = ("bf16", "fp8_e4m3")
PROMPT, OUTPUT = 2048, 64
TINY_PROMPT, TINY_OUTPUT = 12, 4


class Timed:
    """A Llama of 1B shape and random weights, with FP8 layers beside its linear layers.

    Attributes:
        model: where it runs, in its base format.
        graph: its ops and groups.
        ops: the linear layers; torch has no batched FP8 product for attention.
    """

    def __init__(self, part: Part) -> None:
        """Build it, and take the scales of its inputs from a random prompt."""
        torch.manual_seed(0)
        self.part = part
        self.model: Any = build(TINY if part.cpu else SHAPES["1B"], part)
        self.model.set_attn_implementation("sdpa")
        self.batch = prompt(self.model, request_of(part), part.device.type)
        self.graph: Graph = mp.capture(self.model, {"input_ids": self.batch["input_ids"]})
        self.ops = tuple(op.name for op in self.graph.ops if op.kind == "linear")
        with torch.inference_mode():
            self.switch: Switch = float8_switch(self.model, self.ops, [self.batch])

    def passes(self, request: Request, *, graphs: bool) -> list[Pass]:
        """The passes of a request: to be captured, or as they are timed everywhere else."""
        if not graphs:
            return request_passes(self.model, request, static_cache=False, device=self.part.device.type)
        prefill = Pass("ttft", 1, partial(self.model, **self.batch, use_cache=False))
        if not request.output_tokens:
            return [prefill]
        return [prefill, Pass("tpot", request.output_tokens, one_step(self.model, self.batch))]

    def measure(
        self, passes: Sequence[Pass], candidates: Sequence[Candidate], *, graphs: bool, budget_s: float
    ) -> Timing:
        """Measure configurations in turn with the base; see `gain.paired_timing.measure`."""
        device = CPU() if self.part.cpu else CUDA()
        select = self.switch.select
        if graphs:
            device = Graphed(device, select)
            select = device.select
        few = {"repeats": 3, "most_repeats": 3} if self.part.cpu else {}
        settings = TimingSettings(**few, budget_s=max(budget_s, 1.0))
        nowhere = Partial(Path(f"{self.part.path}.npz"), "")
        with torch.inference_mode():
            try:
                return measure(device, select, passes, candidates, settings=settings, partial=nowhere)
            finally:
                select({})
                nowhere.remove()


def request_of(part: Part, *, whole: bool = True) -> Request:
    """The request that is timed, or its prompt alone."""
    tokens, output = (TINY_PROMPT, TINY_OUTPUT) if part.cpu else (PROMPT, OUTPUT)
    return Request(tokens, output if whole else 0)


def one_step(model: nn.Module, batch: dict[str, Any]) -> Callable[[], object]:
    """A decode step behind a prompt that reads the same cache in every call, and leaves it as it is."""
    with torch.inference_mode():
        output = model(**batch, use_cache=True)
    cache, token = cache_of(output), output.logits[:, -1:].argmax(-1)

    def step() -> object:
        fresh = copy.copy(cache)  # its layers put new tensors in the place of those that they hold
        fresh.layers = [copy.copy(layer) for layer in cache.layers]
        return model(input_ids=token, use_cache=True, **cache_argument(model.forward, fresh))

    return step


class Graphed:
    """A device whose calls are CUDA graphs, one of each call and configuration (on a CPU, plain calls)."""

    static_shapes = True

    def __init__(self, device: CPU | CUDA, select: Callable[[Any], None]) -> None:
        """Time on `device`; `select` puts ops into formats."""
        self.name, self.description = device.name, device.description
        self._device, self._select = device, select
        self._formats: frozenset = frozenset()
        self._graphs: dict[tuple[frozenset, int], Callable[[], object]] = {}
        self._pool = torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None

    def select(self, formats: dict[str, str]) -> None:
        """Put these ops into these formats, all others into the base."""
        self._formats = frozenset(formats.items())
        self._select(formats)

    def seconds(self, call: Callable[[], object]) -> float:
        """Time a call in the formats that are selected."""
        key = self._formats, id(call)
        if key not in self._graphs:
            self._graphs[key] = captured(call, self._pool) if self.name == "cuda" else call
        return self._device.seconds(self._graphs[key])
