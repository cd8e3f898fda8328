"""Everything that a plan follows from beside the model and its samples, resolved once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import Demands, Serving
from inc_mp_plugin.core.results import VERIFY_CONFIDENCE
from inc_mp_plugin.scales.scaleless import ON_A_CPU
from inc_mp_plugin.solver.planner import IP_MSE
from inc_mp_plugin.targets import get_target
from inc_mp_plugin.targets.rules import demands
from inc_mp_plugin.targets.timed import runnable_kinds

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Graph
    from inc_mp_plugin.core.request import Request
    from inc_mp_plugin.gain.bench import TimingSettings
    from inc_mp_plugin.model.heldout import HeldOut
    from inc_mp_plugin.scales.methods import Scales

Json = dict[str, Any]
_GOAL = ("objective", "tau", "gain_fraction", "strategy", "seed", "confidence", "budget")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The aim of a plan, the prices of ops, and the consumers that will run it.

    Made from a recipe, from the arguments of `mp.tune`, or from an `IPMSEConfig`; stages know nothing else.

    Attributes:
        base: the base format.
        formats: those below the base format, the preferred one first.
        objective: the gain that the plan is to have most of.
        tau: threshold of the normalized RMSE of the loss (eq. 5).
        gain_fraction: instead, the least gain, as a fraction of the largest.
        budget: instead, the most cost, as a fraction of what everything costs in the base format.
        strategy: "ip_mse"; "eagl" or "alps"; or a baseline: "random" (of `seed`), "prefix", "uniform".
        seed: of the order of "random".
        confidence: level of the interval whose upper end is held to tau; None for the prediction itself.
        noise: "uniform", "log_uniform" (eq. 21) or "measured".
        noise_scales: of measured noise; None for the others.
        value_scales: with which EAGL and ALPS round; None without FP8.
        consumer_scales: of all that will run the plan: an op without a scale stays in the base format.
        scale_method: how INC chooses its scales; each target's own default if None.
        device: that time is modelled for.
        request: that time is priced for; None for the forward pass of the first batch.
        script_request: that scripts for a Gaudi ask for; None for their default.
        timing: where and how long time is measured; None for not at all.
        targets: names of the consumers.
        serving: how the consumers serve the model.
        allowed: names of the ops that may leave the base format; None for all.
        model_name: as the files of targets say it.
        heldout: samples that plans are measured on; None for no measurement.
        verify: if the plan is measured and corrected until tau holds.
        verify_confidence: level of the intervals of measurements.
        emits: if the files of the targets are written.
        recipe: the content of recipe.json, the number of samples aside.
    """

    base: str
    formats: tuple[str, ...] = ("fp8_e4m3",)
    objective: str = "memory"
    tau: float | None = None
    gain_fraction: float | None = None
    budget: float | None = None
    strategy: str = IP_MSE
    seed: int = 0
    confidence: float | None = None
    noise: str = "uniform"
    noise_scales: Scales | None = None
    value_scales: Scales | None = None
    consumer_scales: tuple[Scales, ...] = (ON_A_CPU,)
    scale_method: str | None = None
    device: str = "gaudi2"
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
    def goal(self) -> Json:
        """The values that decide a plan among all that could be made."""
        return {key: getattr(self, key) for key in _GOAL}

    def runnable(self, graph: Graph) -> list[str]:
        """List the ops that may leave the base format, for all targets and the device that is timed."""
        kinds = [get_target(target).kinds for target in self.targets]
        if self.timing is not None:
            kinds += [runnable_kinds(self.timing.device, format_name) for format_name in self.formats]
        return [op.name for op in graph.ops if self._is_allowed(op.name) and _all_hold(kinds, op.kind)]

    def _is_allowed(self, op: str) -> bool:
        return self.allowed is None or op in self.allowed

    def demands(self, graph: Graph, held_back: Mapping[str, str] | None = None) -> Demands:
        """Collect the demands of the targets on a plan; `held_back` holds ops without scales, and why."""
        return demands(graph, self.targets, self.serving, held_back)


def _all_hold(sets: Iterable[Iterable[str]], kind: str) -> bool:
    return all(kind in kinds for kinds in sets)
