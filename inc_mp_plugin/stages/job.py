"""A job: all settings that a plan follows from beside the model and its samples, each with its value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import Demands, Serving
from inc_mp_plugin.core.estimate import Estimate
from inc_mp_plugin.core.knobs import constraint_of
from inc_mp_plugin.core.literals import (
    Accelerator,
    Memory,
    NoiseModel,
    Objective,
    Parallel,
    Strategy,
    Yardstick,
)
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE
from inc_mp_plugin.scales.scaleless import ON_A_CPU
from inc_mp_plugin.solver.planner import IP_MSE
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.rules import demands
from inc_mp_plugin.targets.timed import runnable_kinds

if TYPE_CHECKING:
    from inc_mp_plugin.core.graph import Graph
    from inc_mp_plugin.core.request import Request
    from inc_mp_plugin.gain.bench import TimingSettings
    from inc_mp_plugin.model.heldout import HeldOut
    from inc_mp_plugin.scales.methods import Scales

Json = dict[str, Any]
_GOAL = (
    "objective",
    "tau",
    "kl",
    "gain_fraction",
    "budget",
    "constraint",
    "strategy",
    "seed",
    "confidence",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """The aim of a plan, the prices of ops, and the consumers that will run it.

    Made from a recipe, from the arguments of `mp.tune`, or from an `IPMSEConfig`; stages know nothing else.

    Attributes:
        base: the base format.
        formats: formats below the base format, the preferred one first.
        objective: kind of gain that the plan maximizes: one of `Objective`.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        kl: threshold of the KL divergence, nats per token.
        gain_fraction: instead, the least gain, as a fraction of the largest.
        budget: instead, the most cost, as a fraction of what everything costs in the base format.
        constraint: yardstick that is least for a given gain, "loss" or "kl"; None for the default.
        strategy: "ip_mse"; "eagl" or "alps"; or a baseline: "random" (of `seed`), "prefix", "uniform".
        seed: seed of the order of "random".
        confidence: level of the interval whose upper end is held to a threshold; None for the prediction
            itself.
        noise: "uniform", "log_uniform" (see `core.formats.alpha`) or "measured".
        noise_scales: scales of measured noise; None for the other models of noise.
        estimate: how the KL divergence is estimated: from samples or batches, with how many drawn labels.
        memory: that a sensitivity pass takes: "low", "high" or "auto".
        parallel: spread over several processes while sensitivities are measured: "samples", or "fsdp" for
            the weights, too.
        value_scales: scales with which EAGL and ALPS round; None without FP8.
        consumer_scales: scales of all consumers: an op without a scale there stays in the base format.
        scale_method: the method of choosing scales; each target's own default if None.
        device: accelerator that time is modelled for.
        request: request that time is priced for; None for the forward pass of the first batch.
        script_request: request of the scripts for a Gaudi; None for the default of the scripts.
        timing: device and length of the measurement of time; None for no measurement.
        targets: names of the consumers.
        serving: settings of the consumers that serve the model.
        allowed: names of the ops that may leave the base format; None for all.
        model_name: name of the model in the files of targets.
        heldout: samples that plans are measured on; None for no measurement.
        verify: if the plan is measured and corrected until tau holds.
        verify_confidence: level of the intervals of measurements.
        emits: if the files of the targets are written.
        recipe: content of recipe.json, the number of samples aside.
    """

    base: str
    formats: tuple[str, ...] = ("fp8_e4m3",)
    objective: Objective = "memory"
    tau: float | None = None
    kl: float | None = None
    gain_fraction: float | None = None
    budget: float | None = None
    constraint: Yardstick | None = None
    strategy: Strategy = IP_MSE
    seed: int = 0
    confidence: float | None = None
    noise: NoiseModel = "uniform"
    noise_scales: Scales | None = None
    estimate: Estimate = Estimate()
    memory: Memory = "auto"
    parallel: Parallel = "samples"
    value_scales: Scales | None = None
    consumer_scales: tuple[Scales, ...] = (ON_A_CPU,)
    scale_method: str | None = None
    device: Accelerator = "gaudi2"
    request: Request | None = None
    script_request: Request | None = None
    timing: TimingSettings | None = None
    targets: tuple[str, ...] = ()
    serving: Serving = Serving()
    allowed: frozenset[str] | None = None
    model_name: str = ""
    heldout: HeldOut | None = None
    verify: bool = False
    verify_confidence: float = VERIFY_CONFIDENCE
    emits: bool = True
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def all_formats(self) -> tuple[str, ...]:
        """The base format, and those below it."""
        return (self.base, *self.formats)

    @property
    def asks_for_kl(self) -> bool:
        """True if the KL divergence was asked for, not only taken by default."""
        return self.kl is not None or self.constraint == "kl"

    @property
    def yardsticks(self) -> frozenset[Yardstick]:
        """The yardsticks to measure; with measured noise the KL divergence tells how the loss shifts."""
        least = constraint_of(self.tau, self.kl, self.constraint)
        loss = self.tau is not None or least == "loss"
        kl = self.asks_for_kl or least == "kl" or self.noise == "measured"
        measured: tuple[tuple[Yardstick, bool], ...] = (("loss", loss), ("kl", kl))
        return frozenset(yardstick for yardstick, needed in measured if needed)

    @property
    def goal(self) -> Json:
        """The settings that decide among the plans of the same measurements."""
        return {key: getattr(self, key) for key in _GOAL}

    def runnable(self, graph: Graph) -> list[str]:
        """List the ops that may leave the base format, for all targets and the device that is timed."""
        kinds = [get_target(target).kinds for target in self.targets]
        if self.timing is not None:
            kinds += [runnable_kinds(self.timing.device, format_name) for format_name in self.formats]
        allowed = graph.by_name if self.allowed is None else self.allowed
        return [op.name for op in graph.ops if op.name in allowed and all(op.kind in each for each in kinds)]

    def demands(self, graph: Graph, held_back: Mapping[str, str] | None = None) -> Demands:
        """Collect the demands of the targets on a plan; `held_back` is {op without a scale: reason}."""
        return demands(graph, self.targets, self.serving, held_back)
