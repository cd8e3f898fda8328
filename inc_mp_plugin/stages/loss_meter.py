"""The loss of held-out samples in the model as INC converts it, for any choice of ops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.core.errors import InputError, NonFiniteError
from inc_mp_plugin.core.graph import Graph
from inc_mp_plugin.core.plan import Plan
from inc_mp_plugin.model.finite import first_guilty
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.runtime.progress import say, tracked
from inc_mp_plugin.runtime.reuse import numbered
from inc_mp_plugin.runtime.store import Partial, fingerprint
from inc_mp_plugin.stages.consumer_scales import method_on_a_cpu

if TYPE_CHECKING:
    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.heldout import HeldOut
    from inc_mp_plugin.model.subject import Subject
    from inc_mp_plugin.model.switch import Switch
    from inc_mp_plugin.stages.job import Job


class LossMeter:
    """Measures losses, each choice of ops once: measured losses are stored beside the artefacts.

    INC converts the model once and for good, for the first loss that is not stored yet; afterwards ops are
    switched. One lower format is measured: the first of the job.
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
    ) -> None:
        """Prepare; nothing is loaded or converted yet.

        Args:
            job: the formats, and the scale method of INC.
            heldout: the samples.
            subject: the model, with the batches that give INC's scales.
            graph: from `capture`.
            ops: names of the ops that may leave the base format.
            out: folder of the artefacts.
            beside: another meter, whose converted model is used, and whose samples are skipped.
        """
        self.format = job.formats[0]
        settings = {
            **subject.depends_on,
            **heldout.identify(),
            "format": self.format,
            "scale_method": job.scale_method,
            "ops": fingerprint({"ops": list(ops)}),
        }
        name, self._skip = "measured_losses.npz", 0
        if beside is not None:
            name, self._skip = "verified_losses.npz", heldout.samples
            settings["validation.skip"] = self._skip
        self.depends_on = numbered("losses", settings)
        self.verify_confidence = job.verify_confidence
        self.subject = subject
        self.samples = heldout
        self._job, self._graph, self._ops, self._out = job, graph, ops, out
        self._converted: Callable[[], Switch] = cache(self._convert) if beside is None else beside._converted
        self._partial = Partial(out / name, fingerprint(self.depends_on))
        self._measured = self._partial.load()

    def on_other_samples(self) -> LossMeter:
        """Make a meter of the same model on the next held-out samples, as many as here."""
        same = (self._job, self.samples, self.subject, self._graph)
        return LossMeter(*same, ops=self._ops, out=self._out, beside=self)

    @cached_property
    def heldout(self) -> Sequence[Batch]:
        """The held-out batches."""
        return self.samples.load(self._skip)

    @property
    def switch(self) -> Switch:
        """The model, converted by INC, with both modules of every op."""
        return self._converted()

    def _convert(self) -> Switch:
        from inc_mp_plugin.inc.switching import inc_switch

        say("Quantizing with INC, to measure what was predicted ...")
        subject = self.subject
        return inc_switch(
            subject.model_to_convert(),
            self._graph,
            self._ops,
            base=subject.base,
            lower=self.format,
            batches=subject.batches,
            scale_method=method_on_a_cpu(self._job.scale_method),
        )

    def losses(self, ops: Collection[str]) -> FloatArray:
        """Measure the loss of each held-out sample with these ops in the lower format, shape (samples,).

        Raises:
            NonFiniteError: a loss is NaN or infinite; the text names the op.
        """
        key = _key(ops)
        if key not in self._measured or not np.isfinite(self._measured[key]).all():
            self.switch.select(dict.fromkeys(ops, self.format))
            measured = self._run()
            if not np.isfinite(measured).all():
                raise NonFiniteError(self._why_not_finite(len(ops)))
            self._measured[key] = measured
            self._partial.save(self._measured)
        losses: FloatArray = self._measured[key]
        return losses

    def measure(self, choices: Sequence[Collection[str]], description: str, shorter: str) -> None:
        """Measure the losses of all choices of ops that are not stored yet, and show the progress.

        Args:
            choices: sets of ops in the lower format.
            description: name of the work.
            shorter: advice to the user on making the work shorter.
        """
        by_key = {_key(ops): ops for ops in choices}
        missing = [ops for key, ops in by_key.items() if key not in self._measured]
        if missing:
            self.losses(())  # converts the model, which is no part of a plan's time
        with tracked(missing, description, noun="plan", shorter=shorter) as plans:
            for ops in plans:
                self.losses(ops)

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

    def _why_not_finite(self, lowered: int) -> str:
        """Name the op where the first NaN or infinity appears, in the model as it is switched now."""
        message = f"a loss is NaN or infinite with {lowered} ops in {self.format}"
        for batch in self.heldout:
            run = partial(sample_losses, batch=batch, loss_fn=self.subject.loss_fn)
            guilty = first_guilty(self.switch.model, self._graph.by_name, run)
            if guilty is not None:
                return f"{message}: op {guilty!r} is the first to make NaN or infinity of finite inputs"
        return f"{message}, although no op makes NaN or infinity of finite inputs: check the model itself"

    def _run(self) -> FloatArray:
        import torch

        with torch.no_grad():
            parts = [sample_losses(self.switch.model, batch, self.subject.loss_fn) for batch in self.heldout]
        return np.asarray(torch.cat(parts).double().cpu().numpy())


def _key(ops: Collection[str]) -> str:
    """Name the losses of a choice of ops."""
    return fingerprint({"ops": sorted(ops)})
