"""Loss and KL divergence of held-out samples in a model with any choice of its ops in the lower format."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from inc_mp_plugin.core.divergence import Divergence, from_arrays
from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.core.verdicts import Thresholds
from inc_mp_plugin.model.finite import first_guilty
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.runtime.progress import tracked
from inc_mp_plugin.runtime.reuse import numbered
from inc_mp_plugin.runtime.store import Partial, fingerprint
from inc_mp_plugin.stages.comparison import Comparison, Conditions
from inc_mp_plugin.stages.loss_settings import loss_settings
from inc_mp_plugin.stages.measured_model import MeasuredModel, ThroughHooks, ThroughInc, way_of_plans
from inc_mp_plugin.stages.through_vllm import ThroughVllm
from inc_mp_plugin.stages.together import Together

if TYPE_CHECKING:
    from inc_mp_plugin.core.literals import Through
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.heldout import HeldOut
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.model.switch import Switch
    from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
    from inc_mp_plugin.stages.job import Job

_FLOOR, _CONDITIONS = "floor", "conditions"


class LossMeter:
    """Measures losses and KL divergences, each choice of ops once: they are stored beside the artefacts.

    Both come from one run of the model. Through INC, the model is converted once and for good, for the first
    loss that is not stored yet; afterwards ops are switched. Through hooks, many choices are measured
    together. With "auto" this is a meter through hooks, and its `judge` is one through INC; both are through
    INC where the lower format is BF16 or FP16, for then INC rounds more than inputs and weights. One lower
    format is measured: the first of the job.
    """

    def __init__(
        self,
        job: Job,
        heldout: HeldOut,
        subject: Subject,
        graph: Graph,
        *,
        ops: Sequence[str],
        out: Path,
        beside: LossMeter | None = None,
        server: ThroughVllm | None = None,
    ) -> None:
        """Prepare; nothing is loaded or converted yet.

        Args:
            job: the formats, and the scale method of INC.
            heldout: the samples, and what lowers ops.
            subject: the model, with the batches that give INC's scales.
            graph: from `capture`.
            ops: names of the ops that may leave the base format.
            out: folder of the artefacts.
            beside: another meter, whose model is used, and whose samples are skipped.
            server: the model in a server, if it is measured there.
        """
        self.format = job.formats[0]
        settings = loss_settings(job, heldout, subject, ops)
        name, self._skip = "measured_losses", 0
        if beside is not None:
            name, self._skip = "verified_losses", heldout.samples
            settings["validation.skip"] = self._skip
        self.through: Through = way_of_plans(heldout.through, self.format) if server is None else "vllm"
        if self.through != "inc":
            name = f"{name}_{self.through}"
            settings["validation.through"] = self.through
        self.verify_confidence = job.verify_confidence
        self.thresholds = Thresholds(job.tau, job.kl)
        self.subject, self.samples = subject, heldout
        self._job, self._graph, self._ops, self._out = job, graph, ops, out
        if server is not None:
            settings |= server.identify()
        self.depends_on = numbered("losses", settings)
        if server is not None:
            self._model: MeasuredModel = server
        elif beside is not None:
            self._model = beside._model
        elif self.through == "hooks":
            self._model = ThroughHooks(job, subject, graph)
        else:
            self._model = ThroughInc(job, subject, graph, ops)
        self._partial = Partial(out / f"{name}.npz", fingerprint(self.depends_on))
        self._measured = self._partial.load()

    def on_other_samples(self) -> LossMeter:
        """Make a meter of the same model on the next held-out samples, as many as here."""
        same = (self._job, self.samples, self.subject, self._graph)
        return LossMeter(*same, ops=self._ops, out=self._out, beside=self)

    @cached_property
    def judge(self) -> LossMeter:
        """The meter of the final plan, on the same samples: through INC, unless hooks were asked for."""
        if self.samples.through != "auto" or self.through != "hooks":
            return self
        samples = replace(self.samples, through="inc")
        return LossMeter(self._job, samples, self.subject.lent(), self._graph, ops=self._ops, out=self._out)

    @cached_property
    def heldout(self) -> Sequence[Batch]:
        """The held-out batches."""
        return self.samples.load(self._skip)

    @property
    def dtype(self) -> str:
        """The format that the base model is measured in."""
        return self._model.dtype if isinstance(self._model, ThroughVllm) else self.subject.base

    @property
    def together(self) -> bool:
        """True if many choices are measured together, in less time than one after the other."""
        return self._model.runs is not None

    @property
    def switch(self) -> Switch:
        """The model, converted by INC, with both modules of every op.

        Raises:
            InputError: it is measured without INC.
        """
        if not isinstance(self._model, ThroughInc):
            message = f"there is no model of INC's through {self.through}; measure through inc"
            raise InputError(message)
        return self._model.switch

    @cached_property
    def _comparison(self) -> Comparison:
        return Comparison(self._model, self.heldout, self.subject.loss_fn, self._out, bare=self._asks_for_kl)

    @property
    def _asks_for_kl(self) -> bool:
        return self._job.asks_for_kl

    def losses(self, ops: Collection[str]) -> FloatArray:
        """Measure the loss of each held-out sample with these ops in the lower format, shape (samples,).

        Raises:
            NonFiniteError: a loss or a KL divergence is NaN or infinite; the text names the op.
        """
        losses: FloatArray = self._values(ops)[_key(ops)]
        return losses

    def divergence(self, ops: Collection[str]) -> Divergence | None:
        """Measure the KL divergence from the base model with these ops in the lower format.

        None where the model predicts no distributions; it was measured together with the losses.

        Raises:
            NonFiniteError: as `losses`.
            InputError: the job asks for a KL divergence, and the model has none.
        """
        divergence = from_arrays(self._values(ops), _key(ops))
        if divergence is None and ops and self._asks_for_kl:
            raise InputError(self._comparison.why_not)
        return divergence

    def floor(self) -> float | None:
        """Measure the KL divergence of the base model from itself with other rounding errors, nats.

        They are those of the other attention kernel, or, in a server, of FP32. None where there is no other
        way, or no KL divergence. It is measured once and stored.
        """
        if _FLOOR not in self._measured:
            divergence = self._comparison.of_other_kernel()
            self._keep(_FLOOR, np.array(np.nan if divergence is None else divergence.mean))
        floor = float(self._measured[_FLOOR])
        return None if np.isnan(floor) else floor

    def conditions(self) -> Conditions:
        """Describe how the model ran when losses were first measured."""
        if _CONDITIONS not in self._measured:
            now = self._comparison.conditions()
            self._keep(_CONDITIONS, np.array([now.attention or "", str(now.threads)]))
        attention, threads = self._measured[_CONDITIONS].tolist()
        return Conditions(attention or None, int(threads))

    def _values(self, ops: Collection[str]) -> dict[str, Any]:
        """Measure a choice of ops, if it is not stored; return all stored values."""
        key = _key(ops)
        done = key in self._measured and np.isfinite(self._measured[key]).all()
        if done and ops and self._asks_for_kl:
            done = from_arrays(self._measured, key) is not None
        if not done:
            self._take(ops, *self._comparison.of(dict.fromkeys(ops, self.format)))
        return self._measured

    def _take(self, ops: Collection[str], losses: FloatArray, divergence: Divergence | None) -> None:
        """Keep what was measured of a choice of ops."""
        if not np.isfinite(losses).all():
            raise NonFiniteError(self._why_not_finite(ops, "loss"))
        if divergence is not None:
            if not np.isfinite(divergence.kl).all():
                raise NonFiniteError(self._why_not_finite(ops, "KL divergence"))
            self._measured |= divergence.to_arrays(_key(ops))
        self._keep(_key(ops), losses)

    def _keep(self, key: str, value: Any) -> None:
        self._measured[key] = value
        self._partial.save(self._measured)

    def missing(self, choices: Sequence[Collection[str]]) -> list[Collection[str]]:
        """List the choices of ops that are not stored yet, equal ones once."""
        return list({key: ops for ops in choices if (key := _key(ops)) not in self._measured}.values())

    def forward_s(self) -> float:
        """Measure the time of a forward pass of the base model over the held-out samples, in s."""
        return self._comparison.forward_s()

    def measure(self, choices: Sequence[Collection[str]], description: str, shorter: str) -> None:
        """Measure the losses of all choices of ops that are not stored yet, and show the progress.

        Through hooks they are measured together.

        Args:
            choices: sets of ops in the lower format.
            description: name of the work.
            shorter: advice to the user on making the work shorter.
        """
        missing = {_key(ops): ops for ops in self.missing(choices)}
        if missing and self._model.runs is not None:
            self._measure_together(self._model.runs, missing, description, shorter)
            return
        if missing:
            self.losses(())  # converts the model, which is no part of a plan's time
        with tracked(list(missing.values()), description, noun="plan", shorter=shorter) as plans:
            for ops in plans:
                self.losses(ops)

    def _measure_together(
        self, runs: PlanRuns, missing: Mapping[str, Collection[str]], description: str, shorter: str
    ) -> None:
        if (base := _key(())) not in self._measured:
            missing = {base: (), **missing}
        plans = {key: dict.fromkeys(ops, self.format) for key, ops in missing.items()}
        path = self._partial.path.with_suffix(".partial.npz")
        together = Together(self._comparison, runs, Partial(path, self._partial.key))
        for key, losses, divergence in together.measured(plans, description, shorter):
            self._take(missing[key], losses, divergence)

    def check(self, plan: Plan) -> None:
        """Refuse a plan that lowers ops to another format than the measured one.

        Raises:
            InputError: the plan lowers ops to another format.
        """
        others = set(plan.lowered.values()) - {self.format}
        if others:
            message = (
                f"the plan lowers ops to {', '.join(sorted(others))}, but only the first of formats, "
                f"{self.format}, is measured, because INC runs one per model; give a single format"
            )
            raise InputError(message)

    def _why_not_finite(self, ops: Collection[str], value: str) -> str:
        """Name the op where the first NaN or infinity appears with these ops in the lower format."""
        message = f"a {value} is NaN or infinite with {len(ops)} ops in {self.format}"
        with self._model.lowered(dict.fromkeys(ops, self.format)) as model:
            for batch in self.heldout:
                run = partial(sample_losses, batch=batch, loss_fn=self.subject.loss_fn)
                guilty = first_guilty(model, self._graph.by_name, run)
                if guilty is not None:
                    return f"{message}: op {guilty!r} is the first to make NaN or infinity of finite inputs"
        return f"{message}, although no op makes NaN or infinity of finite inputs: check the model itself"


def _key(ops: Collection[str]) -> str:
    """Name the losses of a choice of ops."""
    return fingerprint({"ops": sorted(ops)})
