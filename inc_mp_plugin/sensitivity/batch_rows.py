"""The rows of one batch: of all its samples at once, where their rows are separate, or one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inc_mp_plugin.core.errors import NonFiniteError
from inc_mp_plugin.model.batches import batch_size, is_packed, sample_lengths, samples, told_nan
from inc_mp_plugin.model.experts import layer_of
from inc_mp_plugin.model.losses import sample_losses
from inc_mp_plugin.model.modes import as_measured
from inc_mp_plugin.runtime.lockstep import backward_pass
from inc_mp_plugin.sensitivity.expert_taps import whole_layers
from inc_mp_plugin.sensitivity.one_batch import Begun, Measured, Pass
from inc_mp_plugin.sensitivity.rows import concatenate
from inc_mp_plugin.sensitivity.tapping import Tapping
from inc_mp_plugin.sensitivity.taps import Taps
from inc_mp_plugin.sensitivity.totals import MixedSamplesError

if TYPE_CHECKING:
    from inc_mp_plugin.model.batches import Batch

_ROUNDING = 0.1  # far more than kernels differ by, relative to a loss


class Kinds:
    """Kinds of a model: does a row belong to one sample, does a loss depend on other samples; asked once."""

    def __init__(self, settings: Pass) -> None:
        """Prepare; nothing is tried yet."""
        self._settings = settings
        self._separable: bool | None = None
        self._contrastive: bool | None = None

    def separable(self, batch: Batch) -> bool:
        """Tell if row i of every tensor belongs to sample i alone; tried on a batch of two or more."""
        if self._separable is None and batch_size(batch) > 1:
            self._separable = _separable(self._settings, batch)
        return bool(self._separable)

    def contrastive(self, batch: Batch) -> bool:
        """Tell if a sample's loss depends on the batch's other samples, by more than rounding."""
        if self._contrastive is None and batch_size(batch) > 1:
            self._contrastive = _contrastive(self._settings, batch)
        return bool(self._contrastive)


@contextmanager
def measuring(settings: Pass, batch: Batch, first: int) -> Iterator[None]:
    """Hold a model inside a `with` as it is measured, on a batch that errors name.

    Args:
        settings: the model.
        batch: that it runs.
        first: number of the batch's first sample.
    """
    with as_measured(settings.model, settings.kernels):
        try:
            yield
        except NonFiniteError as error:
            message = f"{error}{told_nan(batch, first)}"
            raise NonFiniteError(message) from error


def begin(settings: Pass, kinds: Kinds, batch: Batch, numbers: range) -> Begun:
    """Start to measure the rows of a batch: all samples at once where their rows are separate, or one by one.

    The loss of one sample is of the whole batch where samples are told from each other, or packed. Where the
    KL divergence has one row for the batch, nothing is told apart.

    Args:
        settings: the model, and what is measured.
        kinds: of the model.
        batch: of samples.
        numbers: of its samples.

    Returns:
        A function that gives the rows; see `Pass.begin`.
    """
    whole = settings.kl is not None and settings.kl.rows == "batch"
    if whole and not settings.loss:
        return settings.begin(batch, numbers, whole=True)
    if kinds.separable(batch):
        # A tensor of this very batch may mix samples all the same: tokens routed to an expert.
        with suppress(MixedSamplesError):
            return settings.begin(batch, numbers, whole=whole)
    if whole:
        loss = begin(replace(settings, kl=None), kinds, batch, numbers)
        kl = replace(settings, loss=False).begin(batch, numbers, whole=True)
        return lambda: {**loss(), **kl()}
    if kinds.contrastive(batch) or is_packed(batch):
        parts = [settings.begin(batch, numbers, loss_of=i) for i in range(len(numbers))]
    else:
        parts = [settings.begin(samples(batch, i, i + 1), numbers[i : i + 1]) for i in range(len(numbers))]
    return lambda: _concatenated([part() for part in parts])


def _concatenated(parts: list[Measured]) -> Measured:
    return {key: concatenate([part[key] for part in parts]) for key in parts[0]}


def _contrastive(settings: Pass, batch: Batch) -> bool:
    if is_packed(batch) or not settings.loss:
        return False
    with torch.no_grad():
        pair = samples(batch, 0, 2)
        beside, alone = (_loss_of_first(settings, part) for part in (pair, samples(pair, 0, 1)))
    return not bool(torch.isclose(beside, alone, rtol=_ROUNDING, atol=0.0))


def _loss_of_first(settings: Pass, batch: Batch) -> torch.Tensor:
    return sample_losses(settings.model, batch, settings.loss_fn)[0]


def _separable(settings: Pass, batch: Batch) -> bool:
    """Tell if the gradient of one sample's loss reaches no row of a second sample, tried on two."""
    # Rows of an expert in a list are tokens: they can be as many as the samples and yet belong to others.
    layers = whole_layers(settings.model, settings.graph)
    in_lists = any(op.share < 1 and layer_of(op.name) not in layers for op in settings.graph.ops)
    if in_lists or is_packed(batch):
        return False
    pair = samples(batch, 0, 2)
    try:
        tokens, blocks = sample_lengths(batch), settings.blocks
        tapping = Tapping(settings.model, settings.graph, 2, tokens=tokens, inputs_only=True, blocks=blocks)
        with Taps(tapping) as taps:
            loss = settings.losses(pair)[0]
            with backward_pass():
                torch.autograd.backward(loss)
    except MixedSamplesError:
        return False
    return not bool(taps.totals.input[1].any())
