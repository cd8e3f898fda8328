"""Planning a model that is in memory, in a folder that the commands take like any other."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inc_mp_plugin.core.demands import Serving
from inc_mp_plugin.core.op_values import METHODS
from inc_mp_plugin.pipeline.next_command import DRY_RUN, IN_MEMORY
from inc_mp_plugin.pipeline.sections import TimingSection
from inc_mp_plugin.runtime import store
from inc_mp_plugin.runtime.lock import locked
from inc_mp_plugin.stages.gains import Clock, Prices, gains_stage, runnable
from inc_mp_plugin.stages.held_back import hold_back
from inc_mp_plugin.stages.op_values import Low, values_stage
from inc_mp_plugin.stages.stages import Goal, Noise, graph_stage, plan_stage, sensitivity_stage
from inc_mp_plugin.targets.rules import demands

if TYPE_CHECKING:
    from inc_mp_plugin.core.plan import Plan
    from inc_mp_plugin.gain.passes import Request
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.sensitivity.scales import Scales

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked for of a model in memory; see `pipeline.tune`.

    `consumers` are the scales of all that will run the plan: an op without one stays in the base format.
    """

    goal: Goal
    noise: Noise
    low: Low
    consumers: Sequence[Scales]
    device: str
    request: Request | None
    clock: Clock | None
    allowed: Collection[str] | None
    targets: Sequence[str]
    serving: Serving


def plan_in_memory(subject: Subject, asked: Asked, out: Path) -> Plan:
    """Run every stage in a folder, and leave there what the commands need.

    Raises:
        InputError, CaptureError, NonFiniteError, InfeasibleError: as the stages.
    """
    goal, low = asked.goal, asked.low
    with locked(out):
        graph = graph_stage(subject, out)
        sensitivity = sensitivity_stage(subject, graph, asked.noise, out)
        content = recipe_of(subject, asked, sensitivity.samples)
        store.write_artefact(out / "recipe.json", "recipe", content)
        (out / DRY_RUN).unlink(missing_ok=True)
        able = set(runnable(graph, asked.targets, asked.clock, low.formats[1:]))
        sensitivity = sensitivity.of(able if asked.allowed is None else able.intersection(asked.allowed))
        sensitivity, held_back = hold_back(sensitivity, subject.base, low.formats[1:], asked.consumers)
        demanded = demands(graph, asked.targets, asked.serving, held_back)
        prices = Prices(
            low.formats, sensitivity.ops, asked.device, asked.request, goal.objective, asked.clock, demanded
        )
        gains = gains_stage(subject, graph, sensitivity, prices, out)
        values = values_stage(goal.strategy, subject, graph, low, out)
        return plan_stage(sensitivity, gains, goal, out, demands=demanded, values=values)


def recipe_of(subject: Subject, asked: Asked, samples: int) -> Json:
    """recipe.json: what a recipe would say, and that model and samples were in memory.

    `ops` are the names of those that may leave the base format, if not all may.
    """
    given = asked.consumers[0] if len(asked.consumers) == 1 else None
    scales = asked.noise.scales or given or (asked.low.scales if asked.goal.strategy in METHODS else None)
    model = subject.model
    content = {
        **asdict(asked.goal),
        **asdict(asked.serving),
        "model": {
            "name_or_path": getattr(model, "name_or_path", "") or type(model).__name__,
            "dtype": subject.base,
            "weights": IN_MEMORY,
        },
        "calibration": {"data": "in memory", "samples": samples},
        "device": asked.device,
        "formats": list(asked.low.formats[1:]),
        "noise": asked.noise.model,
        "scale_method": None if scales is None else scales.method,
        "targets": list(asked.targets),
        "request": None if asked.request is None else asdict(asked.request),
        "timing": None if asked.clock is None else _timing(asked.clock),
        "ops": None if asked.allowed is None else sorted(asked.allowed),
    }
    if asked.goal.strategy in METHODS:
        content["confidence"] = None  # of ip_mse alone
    return content


def _timing(clock: Clock) -> Json:
    settings = {"device": clock.device, "every_group": clock.every_group, **asdict(clock.settings)}
    return {key: value for key, value in settings.items() if key in TimingSection.model_fields}
