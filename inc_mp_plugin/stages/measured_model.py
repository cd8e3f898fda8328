"""The model that losses are measured in: with any of its ops in the lower format, through INC or hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.runtime.progress import say
from inc_mp_plugin.sensitivity.rounding import CASTS
from inc_mp_plugin.stages.consumer_scales import measuring_scales, method_on_a_cpu

if TYPE_CHECKING:
    from torch import nn

    from inc_mp_plugin.core.literals import Measuring, Through
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.model.switch import Switch
    from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
    from inc_mp_plugin.sensitivity.rounded import Packer
    from inc_mp_plugin.stages.job import Job


def way_of_plans(measuring: Measuring, lower: str) -> Through:
    """Tell what lowers the ops of all plans but the final one; `lower` is their lower format."""
    if measuring == "auto":
        return "inc" if lower in CASTS else "hooks"
    return measuring


class MeasuredModel(Protocol):
    """A model whose ops can be put into a lower format."""

    @property
    def runs(self) -> PlanRuns | None:
        """Runs of several plans together; None where plans can only run one after the other."""

    def lowered(self, formats: Mapping[str, str]) -> AbstractContextManager[nn.Module]:
        """Run these ops, {op: format}, in a lower format inside a `with`, and all others in the base format.

        Yields:
            The model.
        """

    def otherwise(self) -> AbstractContextManager[nn.Module | None]:
        """Run the base model inside a `with` so that it computes the same, with other rounding errors.

        Yields:
            The model; None where there is no other way.
        """


class _InOtherKernel:
    """A model whose base format has another attention kernel."""

    @contextmanager
    def otherwise(self: MeasuredModel) -> Iterator[nn.Module | None]:
        """Run the base model in the other attention kernel."""
        from inc_mp_plugin.model.attention_kernels import in_other_kernel

        with self.lowered({}) as model, in_other_kernel(model) as name:
            yield None if name is None else model


@dataclass
class ThroughInc(_InOtherKernel):
    """The model as INC converts it: once and for good, when it is first needed.

    Attributes:
        job: the formats, and the scale method of INC.
        subject: the model, with the batches that give INC's scales.
        graph: from `capture`.
        ops: names of the ops that may leave the base format.
    """

    job: Job
    subject: Subject
    graph: Graph
    ops: Sequence[str]
    runs: None = None

    @cached_property
    def switch(self) -> Switch:
        """The model, with both modules of every op."""
        from inc_mp_plugin.inc.switching import inc_switch

        say("Quantizing with INC, to measure what was predicted ...")
        return inc_switch(
            self.subject.model_to_convert(),
            self.graph,
            self.ops,
            base=self.subject.base,
            lower=self.job.formats[0],
            batches=self.subject.batches,
            scale_method=method_on_a_cpu(self.job.scale_method),
        )

    @contextmanager
    def lowered(self, formats: Mapping[str, str]) -> Iterator[nn.Module]:
        """Switch to INC's modules of these ops; they stay until others are asked for."""
        self.switch.select(formats)
        yield self.switch.model


@dataclass
class ThroughHooks(_InOtherKernel):
    """The model with hooks that round inputs and weights; it leaves as it came.

    They round as INC on a CPU would, or as the server does that is the first target.

    Attributes:
        job: the formats, the targets and the scale method.
        subject: the model, with the batches whose largest magnitudes give the scales.
        graph: from `capture`.
    """

    job: Job
    subject: Subject
    graph: Graph

    @cached_property
    def model(self) -> nn.Module:
        """The model without what is wrapped around it."""
        from inc_mp_plugin.model.wrappers import unwrapped

        return unwrapped(self.subject.model, dispatched=True)

    @cached_property
    def _rounder(self) -> Packer:
        from inc_mp_plugin.sensitivity.maxabs import observe_maxabs
        from inc_mp_plugin.sensitivity.rounding import CASTS, Cast, Rounding

        lower, subject = self.job.formats[0], self.subject
        scales = measuring_scales(self.job.targets, self.job.scale_method)
        if scales.per_token:
            return Rounding(scales, (lower,))
        say("Taking the scales from the calibration samples, to measure what was predicted ...")
        maxabs = observe_maxabs(self.model, self.graph, subject.batches, subject.loss_fn)
        if lower in CASTS:
            return Cast(maxabs)
        return Rounding(scales, (lower,), maxabs)

    @cached_property
    def _as_used(self) -> bool:
        from inc_mp_plugin.sensitivity.memory import decided

        return decided(self.job.memory, self.model, self.graph, rounded=True) == "low"

    @cached_property
    def runs(self) -> PlanRuns:
        """Runs of several plans together."""
        from inc_mp_plugin.sensitivity.plan_runs import PlanRuns

        return PlanRuns(self.model, self.graph, self._rounder, as_used=self._as_used)

    @contextmanager
    def lowered(self, formats: Mapping[str, str]) -> Iterator[nn.Module]:
        """Round these ops; afterwards the model is as it was."""
        from inc_mp_plugin.model.modes import as_measured
        from inc_mp_plugin.sensitivity.rounded import rounded

        rounder, as_used = self._rounder, self._as_used
        with as_measured(self.model), rounded(self.model, rounder, formats, as_used=as_used):
            yield self.model
