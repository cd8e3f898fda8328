"""The loss of held-out samples in the model as INC converts it, for any choice of ops."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from inc_mp_plugin.errors import InputError
from inc_mp_plugin.heldout import heldout_batches
from inc_mp_plugin.losses import sample_losses
from inc_mp_plugin.plan import Graph, Plan
from inc_mp_plugin.progress import say
from inc_mp_plugin.sensitivities import Sensitivity
from inc_mp_plugin.store import Partial, fingerprint
from inc_mp_plugin.subject import data_settings

if TYPE_CHECKING:
    from inc_mp_plugin.batches import Batch
    from inc_mp_plugin.recipe import Recipe
    from inc_mp_plugin.sections import ValidationSection
    from inc_mp_plugin.sensitivities import FloatArray
    from inc_mp_plugin.subject import Subject
    from inc_mp_plugin.switch import Switch


class LossMeter:
    """Measures losses, each choice of ops once: what was measured is kept beside the artefacts.

    INC converts the model once, when the first loss is not known yet, and for good; afterwards ops are
    switched. One lower format is measured: the first of the recipe.
    """

    def __init__(
        self,
        recipe: Recipe,
        section: ValidationSection,
        subject: Subject,
        graph: Graph,
        sensitivity: Sensitivity,
        out: Path,
        beside: LossMeter | None = None,
    ) -> None:
        """Prepare; nothing is loaded or converted yet.

        Args:
            recipe: names the held-out samples.
            section: its validation section.
            subject: the model; its batches give INC's scales.
            graph: from `capture`.
            sensitivity: its ops are those that may leave the base format.
            out: folder of the artefacts.
            beside: a meter whose converted model is used, and whose samples are skipped.
        """
        self.format = recipe.formats[0]
        self.depends_on = {
            **subject.depends_on,
            **data_settings("validation", section),
            "format": self.format,
            "scale_method": recipe.scale_method,
            "ops": fingerprint({"ops": list(sensitivity.ops)}),
        }
        name, self._skip = "measured_losses.npz", 0
        if beside is not None:
            name, self._skip = "verified_losses.npz", section.samples
            self.depends_on["validation.skip"] = self._skip
        self.verify_confidence = recipe.verify_confidence
        self.subject = subject
        self.section = section
        self._recipe, self._out = recipe, out
        self._graph, self._sensitivity = graph, sensitivity
        self._converted: Callable[[], Switch] = cache(self._convert) if beside is None else beside._converted
        self._kept = Partial(out / name, fingerprint(self.depends_on))
        self._known = self._kept.load()

    def on_other_samples(self) -> LossMeter:
        """A meter of the same model on as many other held-out samples, those that come next."""
        same = (self._recipe, self.section, self.subject, self._graph, self._sensitivity, self._out)
        return LossMeter(*same, beside=self)

    @cached_property
    def heldout(self) -> Sequence[Batch]:
        """The held-out batches."""
        return heldout_batches(self._recipe, self.section, self._skip)

    @property
    def switch(self) -> Switch:
        """The model, converted by INC, with both modules of every op."""
        return self._converted()

    def _convert(self) -> Switch:
        from inc_mp_plugin.switching import switch_to_validate

        say("Quantizing with INC, to measure what was predicted ...")
        subject = self.subject
        return switch_to_validate(
            subject.model,
            self._graph,
            self._sensitivity.ops,
            subject.base,
            self.format,
            subject.batches,
            self._recipe.scale_method,
        )

    def losses(self, ops: Collection[str]) -> FloatArray:
        """Loss of each held-out sample with these ops in the lower format, shape (samples,)."""
        key = fingerprint({"ops": sorted(ops)})
        if key not in self._known:
            self.switch.select(dict.fromkeys(ops, self.format))
            self._known[key] = self._run()
            self._kept.save(self._known)
        losses: FloatArray = self._known[key]
        return losses

    def check(self, plan: Plan) -> None:
        """Refuse a plan that lowers ops to another format than the one that is measured.

        Raises:
            InputError: it does.
        """
        others = set(plan.lowered.values()) - {self.format}
        if others:
            message = (
                f"the plan lowers ops to {', '.join(sorted(others))}, but the first of formats, "
                f"{self.format}, is what is measured: INC runs one per model; give a single format"
            )
            raise InputError(message)

    def _run(self) -> FloatArray:
        import torch

        with torch.no_grad():
            parts = [sample_losses(self.switch.model, one, self.subject.loss_fn) for one in self.heldout]
        return np.asarray(torch.cat(parts).double().cpu().numpy())
