"""Runs of a model on held-out samples, compared with the same model in its base format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from inc_mp_plugin.core.divergence import Divergence
from inc_mp_plugin.model.attention_kernels import attention_kernel
from inc_mp_plugin.model.base_logits import BaseLogits
from inc_mp_plugin.model.batches import placed
from inc_mp_plugin.model.divergence import Rows, divergence_rows, joined, labels_in, row_blocks
from inc_mp_plugin.model.outcome import outcome

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inc_mp_plugin.core.sensitivity import FloatArray
    from inc_mp_plugin.model.batches import Batch
    from inc_mp_plugin.model.losses import LossFunction
    from inc_mp_plugin.model.outcome import Outcome
    from inc_mp_plugin.sensitivity.plan_runs import PlanRuns
    from inc_mp_plugin.stages.measured_model import MeasuredModel

    Running = Callable[[], AbstractContextManager[nn.Module]]
    Formats = Mapping[str, str]


class Part(NamedTuple):
    """Losses of a batch with a plan, and what they add to a divergence if there is one."""

    losses: FloatArray
    rows: Rows | None


def whole(parts: Sequence[Part]) -> tuple[FloatArray, Divergence | None]:
    """Join the parts of all batches: losses, shape (samples,), and the divergence, if every part has one."""
    rows = [part.rows for part in parts if part.rows is not None]
    losses = np.concatenate([part.losses for part in parts])
    return losses, joined(rows) if rows and len(rows) == len(parts) else None


class Conditions(NamedTuple):
    """Conditions of a run: the attention kernel, None without attention, and the number of threads."""

    attention: str | None
    threads: int


class Comparison:
    """Losses, and KL divergences from the base model, of the same held-out samples for any choice of ops.

    The base model's logits are kept in files, as far as they fit there. A batch whose logits do not fit runs
    through the base model once more for each choice; the results are the same, and two batches of logits are
    then in memory.
    """

    def __init__(
        self,
        model: MeasuredModel,
        heldout: Sequence[Batch],
        loss_fn: LossFunction | None,
        folder: Path,
        *,
        bare: bool,
    ) -> None:
        """Prepare; nothing runs yet.

        Args:
            model: with any of its ops in the lower format.
            heldout: the held-out batches.
            loss_fn: as in `sample_losses`.
            folder: that files are made in, which end with this object.
            bare: as in `outcome`.
        """
        self.why_not = ""
        self._heldout, self._loss_fn, self._folder, self._bare = heldout, loss_fn, folder, bare
        self._base: Running = partial(model.lowered, {})
        self._model = model
        self._refused: set[int] = set()

    @cached_property
    def _logits(self) -> BaseLogits:
        return BaseLogits(self._folder)

    def of(self, formats: Mapping[str, str]) -> tuple[FloatArray, Divergence | None]:
        """Measure the losses, shape (samples,), and the KL divergence with these ops in a lower format.

        There is no divergence of the base model itself, nor of a model without distributions.

        Args:
            formats: of the ops that are lowered, by their names.
        """
        if not formats:
            return np.concatenate(
                [_array(run.losses) for _, run in self._keep_base(range(self.batches))]
            ), None
        return self._compared(partial(self._model.lowered, formats))

    def of_batch(
        self, runs: PlanRuns, number: int, plans: Sequence[Formats], advance: Callable[[], None]
    ) -> list[Part]:
        """Measure one batch with each of several plans; see `of`.

        Args:
            runs: of the model.
            number: of the batch.
            plans: formats of the ops that are lowered.
            advance: as in `PlanRuns.results`.
        """
        parts: dict[int, Part] = {}
        batch, base = self._heldout[number], None
        with self._base() as model:
            for members, run in runs.results(plans, partial(self._run, model, batch), advance):
                blocks = row_blocks(base.predicted) if base is not None and base.predicted else None
                part = self._result(run, blocks, model, batch)
                parts |= dict.fromkeys(members, part)
                base = base or run
        return [parts[index] for index in range(len(plans))]

    def at_once(self, runs: PlanRuns) -> int:
        """Return how many plans may run side by side; see `PlanRuns.at_once`."""
        with self._base() as model:
            return runs.at_once(partial(self._run, model, self._heldout[0]))

    def forward_s(self) -> float:
        """Measure the time of a forward pass of the base model over all batches, in s, from the first one."""
        with self._base() as model:
            start_s = time.perf_counter()
            self._run(model, self._heldout[0])
            return (time.perf_counter() - start_s) * self.batches

    def of_other_kernel(self) -> Divergence | None:
        """Measure the KL divergence of the base model from itself with other rounding errors.

        None where there is no other way to run it, such as another attention kernel, or no distribution.
        """
        with self._model.otherwise() as model:
            if model is None:
                return None
        return self._compared(self._base_otherwise)[1]

    def conditions(self) -> Conditions:
        """Describe how the base model runs."""
        with self._base() as model:
            return Conditions(attention_kernel(model), torch.get_num_threads())

    @contextmanager
    def _base_otherwise(self) -> Iterator[nn.Module]:
        with self._model.otherwise() as model:
            yield self._given(model)

    @staticmethod
    def _given(model: nn.Module | None) -> nn.Module:
        if model is None:
            message = "the base model runs in one way alone"
            raise RuntimeError(message)
        return model

    @property
    def batches(self) -> int:
        """The number of held-out batches."""
        return len(self._heldout)

    def _compared(self, running: Running) -> tuple[FloatArray, Divergence | None]:
        """Run a model on all batches; compare it with the base model, unless there is no distribution."""
        results: dict[int, Part] = {}
        for _ in self._keep_base(self._unknown() if not self.why_not else ()):
            if self.why_not:
                break
        with running() as model:
            for number, batch in enumerate(self._heldout):
                blocks = self._logits.blocks(number) if not self.why_not else None
                if blocks is not None or self.why_not:
                    results[number] = self._result(self._run(model, batch), blocks, model, batch)
        for number in sorted(set(range(self.batches)) - results.keys()):
            batch = self._heldout[number]
            with self._base() as model:
                base = self._run(model, batch)
            with running() as model:
                blocks = None if base.predicted is None else row_blocks(base.predicted)
                results[number] = self._result(self._run(model, batch), blocks, model, batch)
        return whole([results[number] for number in range(self.batches)])

    def _unknown(self) -> list[int]:
        """List the batches whose base logits are neither kept nor too large for that."""
        return [n for n in range(self.batches) if n not in self._refused and self._logits.blocks(n) is None]

    def _keep_base(self, numbers: Iterable[int]) -> Iterator[tuple[int, Outcome]]:
        """Run the base model on some batches, and keep its logits if there is room."""
        with self._base() as model:
            for number in numbers:
                run = self._run(model, self._heldout[number])
                if run.predicted is not None and not self._logits.keep(number, run.predicted):
                    self._refused.add(number)
                yield number, run

    def _run(self, model: nn.Module, batch: Batch) -> Outcome:
        run = outcome(model, batch, self._loss_fn, bare=self._bare)
        self.why_not = self.why_not or run.why
        return run

    def _result(self, run: Outcome, base: Iterable[Tensor] | None, model: nn.Module, batch: Batch) -> Part:
        """Return the losses of a batch and, with base logits, what it adds to a divergence."""
        if base is None or run.predicted is None:
            return Part(_array(run.losses), None)
        labels = labels_in(model, placed(model, batch), run.predicted)
        return Part(_array(run.losses), divergence_rows(base, run.predicted, labels))


def _array(losses: Tensor) -> FloatArray:
    array: FloatArray = losses.detach().double().cpu().numpy()
    return array
